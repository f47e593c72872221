// Opens ONNX Runtime with dlopen. Its C API keeps old programs working: the headers may be older than the library.
#include "ort_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
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

// A library of ONNX Runtime, opened: closed again unless it is kept.
struct Opened {
    void* handle;
    std::string path;
    const OrtApiBase* base;
    const OrtApi* api;

    explicit Opened(const std::vector<std::string>& names) : handle(nullptr), base(nullptr), api(nullptr) {
        std::vector<std::string> reasons;
        for (const std::string& name : names) {
            // Its symbols stay its own: a program may have another one for other purposes.
            handle = dlopen(path_of(name), RTLD_NOW | RTLD_LOCAL);
            if (handle) break;
            const char* reason = dlerror();
            reasons.emplace_back(reason ? reason : name);
        }
        if (!handle) {
            refuse_library(concat("ONNX Runtime can't be opened: ", join("; ", reasons),
                                  " (DDM_RT_ONNXRUNTIME or the options name another)"));
        }
        using GetBase = const OrtApiBase* (*)();
        const auto get_base = reinterpret_cast<GetBase>(dlsym(handle, "OrtGetApiBase"));
        base = get_base ? get_base() : nullptr;
        api = base ? base->GetApi(ORT_API_VERSION) : nullptr;
        if (api) return;
        const std::string found = base ? concat("is version ", base->GetVersionString()) : "isn't ONNX Runtime";
        dlclose(handle);
        refuse_library(concat(path, " ", found, "; expected ONNX Runtime 1.", ORT_API_VERSION, " or later"));
    }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;
    ~Opened() {
        if (handle) dlclose(handle);
    }

private:
    const char* path_of(const std::string& name) { return (path = name).c_str(); }
};

struct InUse {
    std::mutex mutex;
    std::weak_ptr<OrtLibrary> library;  // weak: its environment ends with the last model, not at exit
    std::string path;                   // opened once and kept
} in_use;

std::vector<std::string> names_for(const std::string& only) {
    return only.empty() ? default_names() : std::vector{only};
}

}  // namespace

std::shared_ptr<OrtLibrary> OrtLibrary::get(const std::optional<std::string>& path) {
    const std::lock_guard lock(in_use.mutex);
    if (!in_use.path.empty() && path && *path != in_use.path) {
        refuse_library(
            concat("ONNX Runtime was opened from ", in_use.path, "; one process can't have that of ", *path, " too"));
    }
    if (auto library = in_use.library.lock()) return library;
    std::shared_ptr<OrtLibrary> library(new OrtLibrary(path.value_or(in_use.path)));
    in_use.path = library->path_;
    in_use.library = library;
    return library;
}

std::vector<std::string> OrtLibrary::providers() {
    const std::lock_guard lock(in_use.mutex);
    const Opened opened(names_for(in_use.path));
    char** names = nullptr;
    int count = 0;
    std::vector<std::string> found;
    if (OrtStatus* status = opened.api->GetAvailableProviders(&names, &count)) {
        opened.api->ReleaseStatus(status);
        return found;
    }
    found.assign(names, names + count);
    if (OrtStatus* status = opened.api->ReleaseAvailableProviders(names, count)) opened.api->ReleaseStatus(status);
    return found;
}

OrtLibrary::OrtLibrary(const std::string& only) {
    Opened opened(names_for(only));
    path_ = opened.path;
    version_ = opened.base->GetVersionString();
    // Set once: other threads read it without the mutex.
    static const OrtApi* initialised = nullptr;
    if (initialised != opened.api) Ort::InitApi(initialised = opened.api);
    try {
        environment_.emplace(ORT_LOGGING_LEVEL_WARNING, "ddm_rt");
    } catch (const Ort::Exception& error) {
        refuse_library(concat(path_, " can't be used: ", std::string(error.what())));
    }
    opened.handle = nullptr;  // kept
}

}  // namespace ddm
