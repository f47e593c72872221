// Opens ONNX Runtime with dlopen. Its C API keeps old programs working: the headers may be older than the library.
#include "ort_library.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <mutex>

#include "error.h"
#include "text.h"

#ifndef DDM_RT_ONNXRUNTIME_DEFAULT
#define DDM_RT_ONNXRUNTIME_DEFAULT "libonnxruntime.so.1"
#endif

namespace ddm {
namespace {

std::string default_path() {
    const char* chosen = std::getenv("DDM_RT_ONNXRUNTIME");
    return chosen && *chosen ? chosen : DDM_RT_ONNXRUNTIME_DEFAULT;
}

[[noreturn]] void refuse(const std::string& what) { throw Error(Status::backend, what); }

}  // namespace

std::shared_ptr<OrtLibrary> OrtLibrary::get(const std::optional<std::string>& path) {
    static std::mutex mutex;
    static std::weak_ptr<OrtLibrary> current;  // weak: its environment ends with the last pipeline, not at exit
    static std::string opened;                 // dlopen'd once and kept
    const std::lock_guard lock(mutex);
    const std::string wanted = path.value_or(opened.empty() ? default_path() : opened);
    if (!opened.empty() && wanted != opened) {
        refuse(concat("ONNX Runtime was opened from ", opened, "; one process can't have that of ", wanted, " too"));
    }
    if (auto library = current.lock()) return library;
    std::shared_ptr<OrtLibrary> library(new OrtLibrary(wanted));
    opened = wanted;
    current = library;
    return library;
}

OrtLibrary::OrtLibrary(const std::string& path) : path_(path) {
    // Its symbols stay its own: a program may have another one for other purposes.
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        refuse(concat("ONNX Runtime can't be opened: ", dlerror(), " (DDM_RT_ONNXRUNTIME or the options name another)"));
    }
    using GetBase = const OrtApiBase* (*)();
    const auto get_base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
    const OrtApiBase* base = get_base ? get_base() : nullptr;
    const OrtApi* api = base ? base->GetApi(ORT_API_VERSION) : nullptr;
    if (!api) {
        const std::string found = base ? concat("is version ", base->GetVersionString()) : "isn't ONNX Runtime";
        dlclose(handle);
        refuse(concat(path, " ", found, "; expected ONNX Runtime 1.", ORT_API_VERSION, " or later"));
    }
    version_ = base->GetVersionString();
    Ort::InitApi(api);
    environment_.emplace(ORT_LOGGING_LEVEL_WARNING, "ddm_rt");
}

std::string words_of(const Ort::Exception& error) {
    static constexpr std::array names{
        "SUCCESS",          "FAIL",         "INVALID_ARGUMENT", "NO_SUCHFILE",   "NO_MODEL", "ENGINE_ERROR",
        "RUNTIME_EXCEPTION", "INVALID_PROTOBUF", "MODEL_LOADED", "NOT_IMPLEMENTED", "INVALID_GRAPH", "EP_FAIL",
    };
    const auto code = static_cast<size_t>(error.GetOrtErrorCode());
    const std::string name = code < names.size() ? names[code] : "UNKNOWN";
    return concat("[ONNXRuntimeError] : ", code, " : ", name, " : ", std::string(error.what()));
}

}  // namespace ddm
