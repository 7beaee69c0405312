// libcuda.so.1 for machines without a GPU: it loads kernels, and notes launches instead of launching.
//
// What it says of a kernel's parameters is read from the kernel itself: from the section .nv.info.NAME of the ELF file
// that ptxas wrote, with an entry of 12 bytes a parameter, as cuobjdump -elf shows it.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

enum { MOST_PARAMETERS = 64, MOST_NOTES = 4096, OF_A_PARAMETER = 0x17 };

struct function {
    char name[128];
    int parameters;
    size_t offset[MOST_PARAMETERS], size[MOST_PARAMETERS];
};

struct note {
    struct function *function;
    int extended;  // launched by cuLaunchKernelEx, as Triton does
    unsigned grid[3], block[3], shared;
    void *stream;
    uint64_t values[MOST_PARAMETERS];
};

static struct note notes[MOST_NOTES];
static int noted, noting = 1, failure;
static _Thread_local CUcontext context;

// ---- for tests ----

int noted_launches(void) { return noted; }
const struct note *noted_launch(int place) { return &notes[place]; }
void forget_launches(void) { noted = 0; }
void set_noting(int whether) { noting = whether; }
void fail_launches(int error) { failure = error; }

// ---- device and context ----

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error ? "an error" : "no error";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 * 1024; break;
    default: *value = 1;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *primary, CUdevice device) {
    *primary = (CUcontext)(uintptr_t)(device + 1);
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext given) {
    context = given;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *current) {
    *current = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = 0;
    return context ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    *(CUdeviceptr *)data = pointer;
    return attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- kernels ----

static uint64_t number(const char *from, int bytes) {
    uint64_t found = 0;
    memcpy(&found, from, bytes);
    return found;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    *module = (CUmodule)image;
    return memcmp(image, "\177ELF", 4) ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}

static void read_parameters(struct function *function, const char *at, const char *end) {
    while (at < end) {
        const int with_size = at[0] == 4, kind = at[1];
        if (with_size && kind == OF_A_PARAMETER) {
            const uint64_t place = number(at + 8, 2);
            function->offset[place] = number(at + 10, 2);
            function->size[place] = number(at + 12, 4) >> 18;
            if ((int)place >= function->parameters) function->parameters = place + 1;
        }
        at += 4 + (with_size ? number(at + 2, 2) : 0);
    }
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    const char *const file = (const char *)module, *const headers = file + number(file + 40, 8);
    const char *const names = file + number(headers + 64 * number(file + 62, 2) + 24, 8);
    struct function *const found = calloc(1, sizeof *found);
    char wanted[160];
    snprintf(wanted, sizeof wanted, ".nv.info.%s", name);
    snprintf(found->name, sizeof found->name, "%s", name);
    for (uint64_t i = 0; i < number(file + 60, 2); ++i) {
        const char *const header = headers + 64 * i, *const begin = file + number(header + 24, 8);
        if (!strcmp(names + number(header, 4), wanted)) read_parameters(found, begin, begin + number(header + 32, 8));
    }
    *function = (CUfunction)found;
    return found->parameters ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetParamInfo(CUfunction function, size_t place, size_t *offset, size_t *size) {
    const struct function *const of = (const struct function *)function;
    if (place >= (size_t)of->parameters) return CUDA_ERROR_INVALID_VALUE;
    *offset = of->offset[place];
    *size = of->size[place];
    return CUDA_SUCCESS;
}

// ---- launches ----

static CUresult note_launch(struct note given, void **parameters) {
    if (failure) return failure;
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    if (!noting) return CUDA_SUCCESS;
    if (noted == MOST_NOTES) return CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; i < given.function->parameters; ++i)
        memcpy(&given.values[i], parameters[i], given.function->size[i]);
    notes[noted++] = given;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
    unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters, void **extra) {
    const struct note given = {(struct function *)function, 0, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z},
        shared, stream, {0}};
    return extra ? CUDA_ERROR_INVALID_VALUE : note_launch(given, parameters);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
    const struct note given = {(struct function *)function, 1, {config->gridDimX, config->gridDimY, config->gridDimZ},
        {config->blockDimX, config->blockDimY, config->blockDimZ}, config->sharedMemBytes, config->hStream, {0}};
    return extra || config->numAttrs ? CUDA_ERROR_NOT_SUPPORTED : note_launch(given, parameters);
}

// ---- what Triton's launcher links with ----

CUresult cuDriverGetVersion(int *version) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
