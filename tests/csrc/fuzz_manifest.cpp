// libFuzzer on manifests: any bytes end with one, or with an Error; what was read is written and read again.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "error.h"
#include "manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view content(reinterpret_cast<const char*>(data), size);
    std::string written;
    try {
        written = ddm::Manifest::parse(content, "manifest.json").write();
    } catch (const ddm::Error&) {
        return 0;
    }
    if (ddm::Manifest::parse(written, "written").write() != written) std::abort();
    return 0;
}
