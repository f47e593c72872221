// libFuzzer on what reads a bundle's files: any bytes end with a bundle or with an Error, and nothing else.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "bundle.h"
#include "clip_tokenizer.h"
#include "error.h"
#include "files.h"
#include "scoped_words.h"

namespace {

// Where bundle.json lies while it is opened; its other files are missing there.
const std::string& folder() {
    static const std::string made = [] {
        std::string name = "fuzz-bundle-XXXXXX";
        if (!mkdtemp(name.data())) std::abort();
        return name;
    }();
    return made;
}

void read(unsigned part, std::string_view content) {
    const ddm::TextSpec spec{"tokenizer.json", "input_ids", 8, 0};
    switch (part % 6) {
        case 0:
            ddm::write_file_atomically(folder() + "/bundle.json", content);
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
        default: ddm::words_for(ddm::words_by_scope(content, "words.json"), "scope");
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
