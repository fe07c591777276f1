/* The common entry of all NVML symbols, and the types and codes of nvml.h, in the layouts that nvidia-ml-py declares.
 *
 * One function per symbol: it enters, which applies the simulated errors and delays of the symbol's name, and then
 * answers from the table of devices. */
#ifndef LEM_FAKE_NVML_CALLS_H
#define LEM_FAKE_NVML_CALLS_H

#include "state.h"

typedef int nvmlReturn_t;
typedef struct nvmlDevice_st *nvmlDevice_t;

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    ARGUMENT_VERSION_MISMATCH = 25,
    DEPRECATED = 26,
    UNKNOWN = 999,
};

nvmlReturn_t enter(const char *symbol, const struct state **state);
nvmlReturn_t enter_device(
    const char *symbol, nvmlDevice_t handle, const struct state **state, const struct device **device);

/* Whether a rule gives a call, or one field of it (0: none), a value; counts the call. */
bool forged_value(
    const struct state *state, const struct device *device, const char *symbol, unsigned field,
    unsigned long long *value);

#define ENTER()                                                                                                        \
    const struct state *state;                                                                                         \
    nvmlReturn_t status = enter(__func__, &state);                                                                     \
    if (status != SUCCESS) return status

#define ENTER_DEVICE(handle)                                                                                           \
    const struct state *state;                                                                                         \
    const struct device *device;                                                                                       \
    nvmlReturn_t status = enter_device(__func__, handle, &state, &device);                                             \
    if (status != SUCCESS) return status

#endif
