/* The state of the simulated machine, from its state file (library.py documents the format). */
#ifndef LEM_FAKE_NVML_STATE_H
#define LEM_FAKE_NVML_STATE_H

#include "curve.h"

#include <stdbool.h>

enum { MAX_DEVICES = 64, MAX_PROCESSES = 128, MAX_RULES = 128, MAX_POINTS = 4096, TEXT = 96 };

/* The address of a line: a GPU ("2"), one of its MIG instances ("2.0"), or anywhere. */
struct address {
    int gpu;      /* -1: anywhere */
    int instance; /* -1: the whole GPU */
};

enum quantity {
    POWER,
    MODULE_POWER,
    MEMORY_POWER,
    TEMPERATURE,
    SM_CLOCK,
    MEMORY_CLOCK,
    GPU_USE,
    MEMORY_USE,
    THROTTLE,
    /* The share of time under each policy, 0 to 1; the violation counters are their integrals. */
    VIOLATION_POWER,
    VIOLATION_THERMAL,
    VIOLATION_BOARD,
    VIOLATION_RELIABILITY,
    QUANTITIES
};

/* Times in ms; with a period of 0 every reading is new. */
struct sensor {
    double period_ms; /* between two readings */
    double window_ms; /* averaged before each reading */
    double gain, offset_w;
    double average_ms; /* the mean that nvmlDeviceGetPowerUsage shows */
    bool has_instant;
    double wake_w, wake_ms; /* a call about power or energy raises power by so much for so long */
};

struct counter {
    bool supported;
    double period_ms;
    unsigned long long quantum_mj;
    unsigned long long base_mj;
    double gain;
    double stall_ms, resume_ms; /* it shows the value of stall_ms in between */
    double leap_ms, leap_mj;    /* added from then on */
    double reset_ms;            /* it begins again from zero */
};

struct limits {
    bool known;
    unsigned enforced_mw, current_mw, default_mw, min_mw, max_mw;
    double later_ms; /* from then on another one is enforced */
    unsigned later_enforced_mw;
};

/* Facts of the chip; it does not offer a fact without a line. */
struct facts {
    char vbios[TEXT];
    bool has_ecc, ecc, has_persistence, persistence;
    unsigned compute_major, compute_minor, sm_clock_max, memory_clock_max, pcie_generation, pcie_width;
    unsigned nvlinks, nvlinks_up;
    unsigned sm_clock_application;
};

struct device {
    struct address address;
    char uuid[TEXT];
    char name[TEXT];
    char pci[TEXT];
    unsigned long long memory_total;
    unsigned long long memory_used; /* in addition to that of the listed processes */
    unsigned long long memory_reserved;
    bool has_mig;
    bool mig_enabled;
    unsigned mig_slots;
    unsigned gpu_instance;
    unsigned compute_instance;
    double gone_ms, back_ms; /* lost in between; infinite if never */
    struct curve curve[QUANTITIES];
    struct sensor sensor;
    struct counter counter;
    struct limits limits;
    struct facts facts;
};

enum kind { COMPUTE, GRAPHICS, MPS };

struct process {
    struct address address;
    enum kind kind;
    unsigned pid;
    unsigned long long memory;
    bool reported;          /* if not, its memory counts, but NVML has no figure for the process */
    bool bound;             /* ends with the process of that id; else permanent, like a pid of another namespace */
    unsigned long lingers_ms; /* how long its memory stays after its end */
    double from_ms, until_ms;
    unsigned listed_as; /* the pid that NVML shows, as of another namespace; 0: its own */
    unsigned sm_percent; /* of its use of the device; 0: not listed by nvmlDeviceGetProcessUtilization */
};

struct rule {
    char symbol[TEXT]; /* with or without its _vN */
    struct address address;
    int error;
    unsigned long delay_ms;
    unsigned field; /* for one value of nvmlDeviceGetFieldValues, not for the call; 0 otherwise */
    unsigned call;  /* only for that call of each process, counted from 1; 0: for every call */
    double from_ms, until_ms;
    bool is_value; /* the call succeeds, with this value */
    unsigned long long value;
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

/* Read the state file. NULL when it is missing or has an invalid line, which is printed to stderr. */
const struct state *state_read(bool *exists);

/* ms since the state's origin. */
double state_now_ms(const struct state *state);

bool same_address(struct address one, struct address other);
/* Whether `inner` is `outer` or one of its instances. */
bool within(struct address inner, struct address outer);

/* Whether the process exists at the time and still holds its memory. */
bool process_holds(const struct state *state, const struct process *process);

/* Whether a rule that matches a call applies to this one; counts the call. */
bool rule_is_due(const struct state *state, const struct rule *rule);

#endif
