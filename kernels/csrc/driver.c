#include "driver.h"

#include <dlfcn.h>
#include <string.h>

#include "error.h"

static const char DEFAULT_LIBRARY[] = "libcuda.so.1";

ddm_status ddm_driver_open(const char *path, ddm_driver *driver) {
    memset(driver, 0, sizeof *driver);
    const char *name = path == NULL ? DEFAULT_LIBRARY : path;
    driver->library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (driver->library == NULL) {
        const char *reason = dlerror();
        reason = reason == NULL ? "no reason given" : reason;
        return ddm_fail(DDM_ERROR_DRIVER, "no CUDA driver: %s can't be opened (%s)", name, reason);
    }
    const struct {
        const char *name;
        void *slot;
    } functions[] = {
        {"cuInit", &driver->cuInit},
        {"cuCtxGetCurrent", &driver->cuCtxGetCurrent},
        {"cuCtxGetDevice", &driver->cuCtxGetDevice},
        {"cuDeviceGetAttribute", &driver->cuDeviceGetAttribute},
        {"cuModuleLoadData", &driver->cuModuleLoadData},
        {"cuModuleGetFunction", &driver->cuModuleGetFunction},
        {"cuModuleUnload", &driver->cuModuleUnload},
        {"cuFuncSetAttribute", &driver->cuFuncSetAttribute},
        {"cuLaunchKernel", &driver->cuLaunchKernel},
        {"cuGetErrorString", &driver->cuGetErrorString},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *address = dlsym(driver->library, functions[i].name);
        if (address == NULL) {
            ddm_driver_close(driver);
            return ddm_fail(DDM_ERROR_DRIVER, "%s is no CUDA driver: it has no %s", name, functions[i].name);
        }
        /* C has no cast from an object pointer to a function pointer; POSIX promises the same representation. */
        memcpy(functions[i].slot, &address, sizeof address);
    }
    ddm_status status = ddm_driver_check(driver, driver->cuInit(0), "the CUDA driver doesn't start");
    if (status != DDM_OK) {
        ddm_driver_close(driver);
    }
    return status;
}

void ddm_driver_close(ddm_driver *driver) {
    if (driver->library != NULL) {
        dlclose(driver->library);
        driver->library = NULL;
    }
}

ddm_status ddm_driver_check(const ddm_driver *driver, CUresult result, const char *what) {
    if (result == 0) {
        return DDM_OK;
    }
    const char *text = NULL;
    if (driver->cuGetErrorString(result, &text) != 0 || text == NULL) {
        text = "an error that the driver doesn't know";
    }
    return ddm_fail(DDM_ERROR_CUDA, "%s: %s (CUDA error %d)", what, text, result);
}

ddm_status ddm_driver_capability(const ddm_driver *driver, int *capability) {
    CUcontext context = NULL;
    CUdevice device = 0;
    int major = 0, minor = 0;
    ddm_status status = ddm_driver_check(driver, driver->cuCtxGetCurrent(&context), "the current context");
    if (status == DDM_OK && context == NULL) {
        status = ddm_fail(DDM_ERROR_CUDA, "this thread has no current CUDA context");
    }
    if (status == DDM_OK) {
        status = ddm_driver_check(driver, driver->cuCtxGetDevice(&device), "the context's device");
    }
    if (status == DDM_OK) {
        CUresult result = driver->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
        status = ddm_driver_check(driver, result, "the device's compute capability");
    }
    if (status == DDM_OK) {
        CUresult result = driver->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
        status = ddm_driver_check(driver, result, "the device's compute capability");
    }
    *capability = 10 * major + minor;
    return status;
}
