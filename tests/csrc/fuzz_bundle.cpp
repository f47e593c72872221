// libFuzzer on what reads a bundle's files: any bytes end with a bundle or with an Error, and nothing else.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "bundle.h"
#include "cache.h"
#include "calibration.h"
#include "clip_tokenizer.h"
#include "error.h"
#include "fields.h"
#include "files.h"
#include "leave_alone.h"
#include "onnx_files.h"

namespace {

// Where bundle.json, a calibration and a cache lie while they are read; a bundle's other files are missing there.
const std::string& folder() {
    static const std::string made = [] {
        std::string name = "fuzz-bundle-XXXXXX";
        if (!mkdtemp(name.data())) std::abort();
        return name;
    }();
    return made;
}

// Of format 1 there are three files: the other two are these.
constexpr std::string_view CONFIG =
    R"({"name": "x", "latent_shape": [1, 8, 8], "image_size": 8, "channels": 1, "size_multiple": 1, "context_shape": [1, 1],
    "prompt_free": true, "cond": [], "sampling": {}, "num_codes": 1, "num_top_codes": 1, "model": {}, "run": {}})";
constexpr std::string_view SCHEDULE =
    R"({"schema_version": 1, "num_train_timesteps": 2, "alphas_cumprod": [0.9999, 0.979902]})";
constexpr std::string_view CODES =
    R"({"origin": "discovered", "leaves": [{"code": 0, "top_code": 0, "size": 3, "share_in_top": 1}]})";

void of_format_1(std::string_view config, std::string_view schedule, std::string_view codes) {
    const auto first = ddm::parse(config, "config.json"), second = ddm::parse(schedule, "schedule.json"),
               third = ddm::parse(codes, "codes.json");
    ddm::Runtime::of_format_1({first, "config.json"}, {second, "schedule.json"}, {third, "codes.json"});
}

constexpr unsigned CACHE = 9;  // the part that stands for a cache

// What is read of one file.
template <typename Of>
auto read_as(Of of, std::string_view content, const char* name) {
    const auto tree = ddm::parse(content, name);
    return of(ddm::Field(tree, name));
}

void sampled(const ddm::Schedule& schedule) { ddm::step_table(schedule, ddm::SamplerName::ddim, 2); }

// A bundle with this file.
ddm::Bundle bundle_with(const std::string& name, std::string_view content) {
    const std::filesystem::path path = folder() + "/" + name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    const ddm::FileEntry entry{ddm::sha256_of(content), content.size()};
    return {folder(), std::string(64, '0'), {}, 2, {{name, entry}}, {}, {}, {}};
}

// A target by this calibration, of a bundle of four codes.
void calibrated(std::string_view content) {
    ddm::Bundle bundle = bundle_with("calibrations/fuzzed/calibration.json", content);
    for (int64_t code = 0; code < 4; code++) bundle.codes.leaves.push_back({code, code / 2, 8, 0.5});
    ddm::resolve(bundle, "female=.3,male=.7", ddm::Manifest(), true, {});
}

void read(unsigned part, std::string_view content) {
    const ddm::TextSpec spec{"tokenizer.json", "input_ids", 8, 0};
    if (part == CACHE) {
        ddm::find_cache(bundle_with("tables/fuzzed/cache.json", content), 2, ddm::Manifest(),
                        [](const std::string&) {});
        return;
    }
    switch (part % 9) {
        case 0:
            std::ofstream(folder() + "/bundle.json", std::ios::binary) << content;
            ddm::Bundle::load(folder());
            break;
        case 1: of_format_1(content, SCHEDULE, CODES); break;
        case 2: of_format_1(CONFIG, SCHEDULE, content); break;
        case 3: sampled(read_as(ddm::Schedule::of, content, "schedule.json")); break;
        case 4: {
            std::string loss;
            ddm::ClipTokenizer(content, "tokenizer.json", spec).ids("a nurse", loss);
            break;
        }
        case 5: ddm::words_for(ddm::words_by_scope(content, "words.json"), "scope"); break;
        case 6: calibrated(content); break;
        case 8: ddm::external_files(content, "denoiser.onnx"); break;
        default: sampled(read_as(ddm::Runtime::of_format_2, content, "runtime.json").schedule);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    try {
        read(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
    } catch (const ddm::Error&) {}
    return 0;
}
