// libFuzzer on what reads a bundle's files: any bytes end with a bundle or with an Error, and nothing else.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "bundle.h"
#include "calibration.h"
#include "clip_tokenizer.h"
#include "error.h"
#include "files.h"
#include "scoped_words.h"

namespace {

// Where bundle.json and a calibration lie while they are read; a bundle's other files are missing there.
const std::string& folder() {
    static const std::string made = [] {
        std::string name = "fuzz-bundle-XXXXXX";
        if (!mkdtemp(name.data())) std::abort();
        return name;
    }();
    return made;
}

// A target by this calibration, of a bundle of four codes.
void calibrated(std::string_view content) {
    const std::string name = "calibrations/fuzzed/calibration.json";
    std::filesystem::create_directories(folder() + "/calibrations/fuzzed");
    std::ofstream(folder() + "/" + name, std::ios::binary) << content;
    const ddm::FileEntry entry{ddm::sha256_of(content), content.size()};
    ddm::Bundle bundle{folder(), std::string(64, '0'), {{name, entry}}, {}, {}, {}};
    for (int64_t code = 0; code < 4; code++) bundle.codes.leaves.push_back({code, code / 2, 8, 0.5});
    ddm::resolve(bundle, "female=.3,male=.7", ddm::Manifest(), true, {});
}

void read(unsigned part, std::string_view content) {
    const ddm::TextSpec spec{"tokenizer.json", "input_ids", 8, 0};
    switch (part % 7) {
        case 0:
            std::ofstream(folder() + "/bundle.json", std::ios::binary) << content;
            ddm::Bundle::load(folder());
            break;
        case 1: ddm::BundleConfig::from_json(content, "config.json"); break;
        case 2: ddm::Codes::from_json(content, "codes.json"); break;
        case 3: {
            const ddm::Schedule schedule = ddm::Schedule::from_json(content, "schedule.json");
            ddm::step_table(schedule, ddm::SamplerName::ddim, 2);
            break;
        }
        case 4: {
            std::string loss;
            ddm::ClipTokenizer(content, "tokenizer.json", spec).ids("a nurse", loss);
            break;
        }
        case 5: ddm::words_for(ddm::words_by_scope(content, "words.json"), "scope"); break;
        default: calibrated(content);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    try {
        read(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
    } catch (const ddm::Error&) {
    }
    return 0;
}
