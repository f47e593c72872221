// The table of backends: the names that Python has, each with its loader or the reason why this library has none.
#include "backend.h"

#include <algorithm>
#include <thread>

#include "backend_ort.h"
#include "error.h"
#include "ort_library.h"
#include "text.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace ddm {
namespace {

constexpr const char* kElsewhere = "this library has no such backend; the Python package has it";
constexpr const char* kTensorRT =
    "not built: this version of the library has no TensorRT backend; the Python package has it";

// In the order in which `auto` tries them.
const std::vector<std::pair<std::string, const char*>>& table() {
    static const std::vector<std::pair<std::string, const char*>> names{
        {"tensorrt", kTensorRT},   {"tensorrt-rtx", kTensorRT}, {"openvino", kElsewhere},
        {"onnxruntime", nullptr}, {"torch", kElsewhere},
    };
    return names;
}

// Why the backend can't be had, or none; then `library` is open.
std::optional<std::string> reason_against(const char* not_here, const Bundle& bundle, const BackendOptions& options,
                                          std::shared_ptr<OrtLibrary>& library) {
    if (not_here) return not_here;
    try {
        library = OrtLibrary::get(options.onnxruntime);
    } catch (const Error& error) {
        return error.what();
    }
    if (bundle.config.precision == "bf16" && is_cpu(options.provider)) {
        return "ONNX Runtime has no bf16 operators on the CPU, and this bundle is bf16";
    }
    return std::nullopt;
}

[[noreturn]] void unavailable(const std::string& name, const std::string& reason,
                              const std::vector<std::string>& others) {
    const std::string choices = others.empty() ? "none" : join(", ", others);
    throw Error(Status::backend,
                concat("backend ", repr(name), " is not available: ", reason, "; available here: ", choices));
}

int64_t usable_cores() {
#ifdef __linux__
    cpu_set_t set;  // too small for more than 1,024 CPUs: then the call fails
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
    return std::max<int64_t>(std::thread::hardware_concurrency(), 1);
}

}  // namespace

std::unique_ptr<Backend> load_backend(const Bundle& bundle, const BackendOptions& options, const Log& log) {
    if (options.threads && *options.threads < 1) {
        throw Error(concat("threads is ", *options.threads, "; expected at least 1"));
    }
    std::shared_ptr<OrtLibrary> library;
    std::vector<std::string> names, others, reasons;
    bool known = options.name == "auto", chosen = false;
    for (const auto& [name, not_here] : table()) {
        names.push_back(name);
        known = known || name == options.name;
    }
    if (!known) {
        throw Error(concat("backend ", repr(options.name), " is unknown; backends: auto, ", join(", ", names)));
    }
    for (const auto& [name, not_here] : table()) {
        const auto reason = reason_against(not_here, bundle, options, library);
        if (options.name == "auto" || options.name == name) {
            chosen = chosen || !reason;
            if (reason) reasons.push_back(options.name == "auto" ? concat(name, ": ", *reason) : *reason);
        } else if (!reason) {
            others.push_back(name);
        }
    }
    if (!chosen) unavailable(options.name, join("; ", reasons), others);
    const int64_t cores = usable_cores(), threads = options.threads.value_or(cores);
    const int64_t calls = is_cpu(options.provider) ? std::max<int64_t>(cores / threads, 2) : 1;
    return make_ort_backend(bundle, std::move(library), {options, threads, static_cast<size_t>(calls), log});
}

std::vector<BackendFound> backends() {
    std::vector<BackendFound> found;
    for (const auto& [name, not_here] : table()) {
        BackendFound& each = found.emplace_back(BackendFound{name, {}, {}});
        try {
            if (not_here) each.reason = not_here;
            else each.providers = OrtLibrary::providers();
        } catch (const Error& error) {
            each.reason = error.what();
        }
    }
    return found;
}

}  // namespace ddm
