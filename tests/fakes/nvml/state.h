/* What the simulated machine looks like at this moment, as its state file says (see library.py for the format). */
#ifndef LEM_FAKE_NVML_STATE_H
#define LEM_FAKE_NVML_STATE_H

#include "curve.h"

#include <stdbool.h>

enum { MAX_DEVICES = 64, MAX_PROCESSES = 128, MAX_RULES = 32, MAX_POINTS = 4096, TEXT = 96 };

/* Where a line applies: a GPU ("2"), one of its MIG instances ("2.0"), or anywhere. */
struct place {
    int gpu;      /* -1: anywhere */
    int instance; /* -1: the whole GPU */
};

enum quantity { POWER, TEMPERATURE, SM_CLOCK, MEMORY_CLOCK, GPU_USE, MEMORY_USE, THROTTLE, QUANTITIES };

/* Times in ms; a period of 0 is no period: always the newest. */
struct sensor {
    double period_ms; /* a reading holds for so long */
    double window_ms; /* and is the mean of so much time before it */
};

struct counter {
    bool supported;
    double period_ms;
    unsigned long long quantum_mj;
    unsigned long long base_mj;
};

struct limits {
    bool known;
    unsigned enforced_mw, current_mw, default_mw, min_mw, max_mw;
};

/* What the chip is; a fact that no line gives is one that it does not offer. */
struct facts {
    char vbios[TEXT];
    bool has_ecc, ecc, has_persistence, persistence;
    unsigned compute_major, compute_minor, sm_clock_max, memory_clock_max, pcie_generation, pcie_width;
    unsigned nvlinks, nvlinks_up;
};

struct device {
    struct place place;
    char uuid[TEXT];
    char name[TEXT];
    char pci[TEXT];
    unsigned long long memory_total;
    unsigned long long memory_used; /* by nobody that is listed */
    unsigned long long memory_reserved;
    bool has_mig;
    bool mig_enabled;
    unsigned mig_slots;
    unsigned gpu_instance;
    unsigned compute_instance;
    double gone_ms, back_ms; /* lost in between; infinite where it is not */
    struct curve curve[QUANTITIES];
    struct sensor sensor;
    struct counter counter;
    struct limits limits;
    struct facts facts;
};

enum kind { COMPUTE, GRAPHICS, MPS };

struct process {
    struct place place;
    enum kind kind;
    unsigned pid;
    unsigned long long memory;
    bool reported;          /* else its memory counts, but NVML has no figure for the process */
    bool bound;             /* gone with the process of that id; else always there, as a pid of another namespace is */
    unsigned long lingers_ms; /* so long its memory stays after its death */
    double from_ms, until_ms;
};

struct rule {
    char symbol[TEXT]; /* with or without its _vN */
    struct place place;
    int error;
    unsigned long delay_ms;
    unsigned field; /* of that one value of nvmlDeviceGetFieldValues, not of the call; 0 otherwise */
    unsigned call;  /* only at that call of each process, counted from 1; 0: at every one */
};

struct state {
    char driver[TEXT];
    unsigned cuda; /* 13020 is 13.2 */
    unsigned long long origin_ns; /* on CLOCK_MONOTONIC */
    int devices, processes, rules, points;
    struct device device[MAX_DEVICES];
    struct process process[MAX_PROCESSES];
    struct rule rule[MAX_RULES];
    struct point point[MAX_POINTS];
};

/* Read the state file. NULL when there is none or a line of it can't be understood, which is said on stderr. */
const struct state *state_read(bool *exists);

/* ms since the state's origin. */
double state_now_ms(const struct state *state);

bool same_place(struct place one, struct place other);
/* Whether `inner` is `outer` or one of its instances. */
bool within(struct place inner, struct place outer);

/* Whether the process is there by the time and still holds its memory. */
bool process_holds(const struct state *state, const struct process *process);

/* Whether the rule, which fits a call, applies to this one; every such call counts. */
bool rule_is_due(const struct rule *rule);

#endif
