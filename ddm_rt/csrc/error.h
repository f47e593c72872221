// What a caller can act on: thrown inside, turned into a status at the C boundary. And what is told beside that.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

namespace ddm {

enum class Status {
    input = 1,    // DdmError
    bundle = 2,   // BundleError
    ledger = 3,   // LedgerError
    backend = 4,  // BackendUnavailable
    cancelled = 5,
    abi = 9,
};

class Error : public std::runtime_error {
public:
    // `field`: the argument, file or field of one that it is about.
    Error(Status status, const std::string& message, std::string field = "")
        : std::runtime_error(message), status(status), field(std::move(field)) {}
    explicit Error(const std::string& message) : Error(Status::input, message) {}

    const Status status;
    const std::string field;
};

// Of a message that begins with what it is about.
inline Error about(Status status, const std::string& field, const std::string& rest) {
    return {status, field + rest, field};
}
inline Error about(const std::string& field, const std::string& rest) { return about(Status::input, field, rest); }

[[noreturn]] inline void refuse_bundle(const std::string& file, const std::string& rest) {
    throw about(Status::bundle, file, rest);
}

// Asked whether to stop.
using Cancelled = std::function<bool()>;

// Told what doesn't stop a request, where Python would log a warning.
using Warn = std::function<void(const std::string&)>;

enum class Level { debug, info, warning, error };

// Messages that don't stop anything. May be called on any thread.
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
