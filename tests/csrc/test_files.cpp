// Hashes, and files that change between being checked and being opened.
#include <gtest/gtest.h>

#include <unistd.h>
#include <filesystem>
#include <fstream>

#include "bundle.h"
#include "error.h"
#include "files.h"

namespace {

namespace fs = std::filesystem;

TEST(Files, HashesAreSha256) {
    EXPECT_EQ(ddm::sha256_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    EXPECT_EQ(ddm::sha256_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Files, ABundleThatIsWrittenWhileItIsOpenedIsRefused) {
    const fs::path copy = fs::temp_directory_path() / ("ddm_rt-" + std::to_string(getpid()));
    fs::copy(DIGITS_BUNDLE, copy, fs::copy_options::recursive);
    const ddm::Bundle bundle = ddm::Bundle::load(copy);
    bundle.check_unchanged();
    fs::copy(copy / "denoiser.onnx", copy / "same");
    fs::rename(copy / "same", copy / "denoiser.onnx");  // another file of the same content: what it holds is not known
    try {
        bundle.check_unchanged();
        ADD_FAILURE() << "not refused";
    } catch (const ddm::Error& error) {
        EXPECT_EQ(error.status, ddm::Status::bundle);
        EXPECT_NE(std::string(error.what()).find("denoiser.onnx: was written"), std::string::npos);
    }
    fs::remove_all(copy);
}

}  // namespace
