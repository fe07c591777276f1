/* What the simulated machine looks like at this moment, as its state file says (see library.py for the format). */
#ifndef LEM_FAKE_NVML_STATE_H
#define LEM_FAKE_NVML_STATE_H

#include <stdbool.h>

enum { MAX_DEVICES = 64, MAX_PROCESSES = 128, MAX_RULES = 32, TEXT = 96 };

/* Where a line applies: a GPU ("2"), one of its MIG instances ("2.0"), or anywhere. */
struct place {
    int gpu;      /* -1: anywhere */
    int instance; /* -1: the whole GPU */
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
};

struct rule {
    char symbol[TEXT]; /* with or without its _vN */
    struct place place;
    int error;
    unsigned long delay_ms;
};

struct state {
    char driver[TEXT];
    int devices, processes, rules;
    struct device device[MAX_DEVICES];
    struct process process[MAX_PROCESSES];
    struct rule rule[MAX_RULES];
};

/* Read the state file. NULL when there is none or a line of it can't be understood, which is said on stderr. */
const struct state *state_read(bool *exists);

bool same_place(struct place one, struct place other);
/* Whether `inner` is `outer` or one of its instances. */
bool within(struct place inner, struct place outer);

/* Whether the process still holds its memory. */
bool process_holds(const struct process *process);

#endif
