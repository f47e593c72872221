// ONNX Runtime's shared library, opened when the first pipeline is: so that building needs its headers alone, and a
// program may bring the version that it wants.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ddm {

class OrtLibrary {
public:
    // The one of this process, opened from `path`, or from the default. Throws Error with Status::backend where it
    // can't be opened, is too old, or another one is in use. It stays open until the process ends.
    static std::shared_ptr<OrtLibrary> get(const std::optional<std::string>& path);

    // Execution providers of the one that is in use, else of the default, which isn't taken into use by this. Throws
    // Error where it can't be opened.
    static std::vector<std::string> providers();

    const std::string& version() const { return version_; }
    const Ort::Env& environment() const { return *environment_; }

private:
    explicit OrtLibrary(const std::string& only);  // empty: the first of the default names that there is

    std::string path_, version_;
    std::optional<Ort::Env> environment_;
};

}  // namespace ddm
