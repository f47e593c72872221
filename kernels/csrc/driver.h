/* The few functions of the CUDA driver that a launch needs, resolved at run time. */
#ifndef DDM_DRIVER_H
#define DDM_DRIVER_H

#include "ddm_kernels.h"

/* The driver's own handles and numbers (cuda.h), which needn't be installed to build this. */
typedef int CUresult;
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;

enum {
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
};

typedef struct ddm_driver {
    void *library;
    CUresult (*cuInit)(unsigned flags);
    CUresult (*cuCtxGetCurrent)(CUcontext *context);
    CUresult (*cuCtxGetDevice)(CUdevice *device);
    CUresult (*cuDeviceGetAttribute)(int *value, int attribute, CUdevice device);
    CUresult (*cuModuleLoadData)(CUmodule *module, const void *image);
    CUresult (*cuModuleGetFunction)(CUfunction *function, CUmodule module, const char *name);
    CUresult (*cuModuleUnload)(CUmodule module);
    CUresult (*cuFuncSetAttribute)(CUfunction function, int attribute, int value);
    CUresult (*cuLaunchKernel)(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,
                               void **parameters, void **extra);
    CUresult (*cuGetErrorString)(CUresult error, const char **text);
} ddm_driver;

/* Open the library at `path` (null: libcuda.so.1), resolve every function and initialise the driver. */
ddm_status ddm_driver_open(const char *path, ddm_driver *driver);
void ddm_driver_close(ddm_driver *driver);

/* DDM_OK for a result of 0, else DDM_ERROR_CUDA with `what` and the driver's words. */
ddm_status ddm_driver_check(const ddm_driver *driver, CUresult result, const char *what);

/* The compute capability of the current context's device, as 10 * major + minor. */
ddm_status ddm_driver_capability(const ddm_driver *driver, int *capability);

#endif
