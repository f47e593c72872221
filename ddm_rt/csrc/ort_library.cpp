// Opens ONNX Runtime with dlopen. Its C API keeps old programs working: the headers may be older than the library.
#include "ort_library.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "error.h"
#include "text.h"

namespace ddm {
namespace {

// The first of them that there is.
std::vector<std::string> default_names() {
    const char* chosen = std::getenv("DDM_RT_ONNXRUNTIME");
    if (chosen && *chosen) return {chosen};
#ifdef DDM_RT_ONNXRUNTIME_IS_LINKED
    Dl_info linked;  // opening it again gives the one that is there
    if (dladdr(reinterpret_cast<void*>(&OrtGetApiBase), &linked)) return {linked.dli_fname};
#endif
#ifdef DDM_RT_ONNXRUNTIME_DEFAULT
    return {DDM_RT_ONNXRUNTIME_DEFAULT};
#else
    // Microsoft's name, Debian's, and the one that programs are linked by.
    return {"libonnxruntime.so.1", concat("libonnxruntime.so.1.", ORT_API_VERSION), "libonnxruntime.so"};
#endif
}

[[noreturn]] void refuse_library(const std::string& what) { throw Error(Status::backend, what); }

std::pair<void*, std::string> open_first(const std::vector<std::string>& names) {
    std::vector<std::string> reasons;
    for (const std::string& name : names) {
        // Its symbols stay its own: a program may have another one for other purposes.
        if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return {handle, name};
        const char* reason = dlerror();
        reasons.emplace_back(reason ? reason : name);
    }
    refuse_library(concat("ONNX Runtime can't be opened: ", join("; ", reasons),
                  " (DDM_RT_ONNXRUNTIME or the options name another)"));
}

}  // namespace

std::shared_ptr<OrtLibrary> OrtLibrary::get(const std::optional<std::string>& path) {
    static std::mutex mutex;
    static std::weak_ptr<OrtLibrary> current;  // weak: its environment ends with the last pipeline, not at exit
    static std::string opened;                 // dlopen'd once and kept
    const std::lock_guard lock(mutex);
    if (!opened.empty() && path && *path != opened) {
        refuse_library(concat("ONNX Runtime was opened from ", opened, "; one process can't have that of ", *path, " too"));
    }
    if (auto library = current.lock()) return library;
    const std::string only = path.value_or(opened);
    std::shared_ptr<OrtLibrary> library(new OrtLibrary(only.empty() ? default_names() : std::vector{only}));
    opened = library->path_;
    current = library;
    return library;
}

OrtLibrary::OrtLibrary(const std::vector<std::string>& names) {
    void* handle = nullptr;
    std::tie(handle, path_) = open_first(names);
    using GetBase = const OrtApiBase* (*)();
    const auto get_base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
    const OrtApiBase* base = get_base ? get_base() : nullptr;
    const OrtApi* api = base ? base->GetApi(ORT_API_VERSION) : nullptr;
    if (!api) {
        const std::string found = base ? concat("is version ", base->GetVersionString()) : "isn't ONNX Runtime";
        dlclose(handle);
        refuse_library(concat(path_, " ", found, "; expected ONNX Runtime 1.", ORT_API_VERSION, " or later"));
    }
    version_ = base->GetVersionString();
    // Set once: other threads read it without the mutex.
    static const OrtApi* initialised = nullptr;
    if (initialised != api) Ort::InitApi(initialised = api);
    try {
        environment_.emplace(ORT_LOGGING_LEVEL_WARNING, "ddm_rt");
    } catch (const Ort::Exception& error) {
        refuse_library(concat(path_, " can't be used: ", words_of(error)));
    }
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
