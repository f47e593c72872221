// Which backend is taken. The names are those that Python has; this library has one of them.
#include "backend.h"

#include <sched.h>
#include <algorithm>
#include <thread>

#include "backend_ort.h"
#include "error.h"
#include "ort_library.h"
#include "text.h"

namespace ddm {
namespace {

constexpr const char* kOwn = "onnxruntime";
const std::vector<std::string> kNames{"tensorrt", "tensorrt-rtx", "openvino", kOwn, "torch"};
constexpr const char* kElsewhere = "not built: this library has ONNX Runtime alone; the Python package has it";

int64_t usable_cores() {
    cpu_set_t set;  // too small for more than 1,024 CPUs: then the call fails
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
    return std::max<int64_t>(std::thread::hardware_concurrency(), 1);
}

}  // namespace

std::unique_ptr<Backend> load_backend(const Bundle& bundle, const BackendOptions& options, const Log& log) {
    if (options.threads && *options.threads < 1) {
        throw about("threads", concat(" is ", *options.threads, "; expected at least 1"));
    }
    if (options.name != "auto" && std::find(kNames.begin(), kNames.end(), options.name) == kNames.end()) {
        throw about("backend", concat(" ", repr(options.name), " is unknown; backends: auto, ", join(", ", kNames)));
    }
    const auto unavailable = [&](const std::string& reason) {
        return about(Status::backend, "backend", concat(" ", repr(options.name), " is not available: ", reason));
    };
    if (options.name != "auto" && options.name != kOwn) {
        throw unavailable(concat(kElsewhere, "; available here: ", kOwn));
    }
    if (is_cpu(options.provider) && !options.provider_options.empty()) {
        throw about(options.provider_options[0].first, ": no option of a provider; the CPU takes none");
    }
    if (bundle.config.precision == "bf16" && is_cpu(options.provider)) {
        throw unavailable("ONNX Runtime has no bf16 operators on the CPU, and this bundle is bf16");
    }
    std::shared_ptr<OrtLibrary> library;
    try {
        library = OrtLibrary::get(options.onnxruntime);
    } catch (const Error& error) {
        throw unavailable(error.what());
    }
    const int64_t cores = usable_cores(), threads = options.threads.value_or(cores);
    const int64_t calls = is_cpu(options.provider) ? std::max<int64_t>(cores / threads, 2) : 1;
    return make_ort_backend(bundle, std::move(library), {options, threads, static_cast<size_t>(calls), log});
}

std::vector<BackendFound> backends() {
    std::vector<BackendFound> found;
    for (const std::string& name : kNames) {
        BackendFound& each = found.emplace_back(BackendFound{name, kElsewhere, {}});
        if (name != kOwn) continue;
        try {
            each.providers = OrtLibrary::providers();
            each.reason = std::nullopt;
        } catch (const Error& error) {
            each.reason = error.what();
        }
    }
    return found;
}

}  // namespace ddm
