// runtime.json: all that a program without Python needs of a bundle of format 2.
#ifndef DDM_RT_RUNTIME_H
#define DDM_RT_RUNTIME_H

#include <string>
#include <string_view>

#include "config.h"
#include "schedule.h"

namespace ddm {

struct Runtime {
    BundleConfig config;
    Codes codes;
    Schedule schedule;

    // Throws Error naming `path` and the field that is wrong, or that needs a newer version. Fields that this version
    // doesn't know are left alone, but for what "requires" names.
    static Runtime from_json(std::string_view content, const std::string& path);
};

}  // namespace ddm

#endif
