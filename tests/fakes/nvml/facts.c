/* NVML's symbols for facts of a chip and its driver. */
#include "calls.h"

#include <string.h>

enum { CLOCK_SM = 1, CLOCK_MEMORY = 2 };

static nvmlReturn_t number(unsigned known, unsigned *value) {
    if (known == 0) return NOT_SUPPORTED;
    *value = known;
    return SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    ENTER();
    return number(state->cuda, (unsigned *)version);
}

nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t handle, char *version, unsigned length) {
    ENTER_DEVICE(handle);
    if (device->facts.vbios[0] == '\0') return NOT_SUPPORTED;
    if (strlen(device->facts.vbios) >= length) return INSUFFICIENT_SIZE;
    strcpy(version, device->facts.vbios);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t handle, int *major, int *minor) {
    ENTER_DEVICE(handle);
    *minor = (int)device->facts.compute_minor;
    return number(device->facts.compute_major, (unsigned *)major);
}

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    ENTER_DEVICE(handle);
    if (!device->facts.has_ecc) return NOT_SUPPORTED;
    *current = *pending = device->facts.ecc;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t handle, unsigned *mode) {
    ENTER_DEVICE(handle);
    if (!device->facts.has_persistence) return NOT_SUPPORTED;
    *mode = device->facts.persistence;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t handle, unsigned clock, unsigned *mhz) {
    ENTER_DEVICE(handle);
    if (clock != CLOCK_SM && clock != CLOCK_MEMORY) return INVALID_ARGUMENT;
    return number(clock == CLOCK_SM ? device->facts.sm_clock_max : device->facts.memory_clock_max, mhz);
}

nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t handle, unsigned clock, unsigned *mhz) {
    ENTER_DEVICE(handle);
    return clock == CLOCK_SM ? number(device->facts.sm_clock_application, mhz) : NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t handle, unsigned *generation) {
    ENTER_DEVICE(handle);
    return number(device->facts.pcie_generation, generation);
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t handle, unsigned *width) {
    ENTER_DEVICE(handle);
    return number(device->facts.pcie_width, width);
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t handle, unsigned link, unsigned *is_up) {
    ENTER_DEVICE(handle);
    if (device->facts.nvlinks == 0) return NOT_SUPPORTED;
    if (link >= device->facts.nvlinks) return INVALID_ARGUMENT;
    *is_up = link < device->facts.nvlinks_up;
    return SUCCESS;
}
