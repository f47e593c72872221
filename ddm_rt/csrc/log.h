// Messages that don't stop anything, and their levels.
#ifndef DDM_RT_LOG_H
#define DDM_RT_LOG_H

#include <functional>
#include <string>

#include "error.h"

namespace ddm {

enum class Level { debug, info, warning, error };

// May be called on any thread.
struct Log {
    Level least = Level::warning;
    std::function<void(Level, const std::string&)> tell = {};

    void operator()(Level level, const std::string& message) const {
        if (tell && level >= least) tell(level, message);
    }
    Warn warn() const {
        return [log = *this](const std::string& message) { log(Level::warning, message); };
    }
};

}  // namespace ddm

#endif
