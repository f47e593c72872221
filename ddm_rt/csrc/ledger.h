// The ledger: how many images of each code a stream of requests has got, in memory or in the SQLite file that the
// Python package uses too, at the same time (ddm_rt/sample/balance/ledger.py).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "quota.h"

namespace ddm {

// What is counted apart.
struct Stream {
    std::string bundle_id, scope, target;
    std::optional<std::string> calibration_id;

    auto operator<=>(const Stream&) const = default;
};

struct Draw {
    int64_t position;  // in the stream, from 0
    int64_t code;
};

// Where a stream stands: images of each code whose positions were handed out, of those the ones of requests under way,
// and the ones that were given back.
struct Standing {
    Stream stream;
    CodeCounts issued, leased, pooled;
};

class LedgerState;

// Draws of one request. Its destructor gives back what was not committed. Once the ledger is closed, committing throws
// and the draws are given back.
class Lease {
public:
    Lease(std::shared_ptr<LedgerState> ledger, std::string owner, int64_t number, std::vector<Draw> draws);
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&&) = delete;
    ~Lease();

    const std::vector<Draw>& draws() const { return draws_; }

    void commit();   // the draws are done; throws Error where that can't be recorded, and then none of them is
    void release();  // give them back, unless they were committed

private:
    std::shared_ptr<LedgerState> ledger_;  // null once committed or given back
    std::string owner_;
    int64_t number_;
    std::vector<Draw> draws_;
};

// Any number of threads may use it. Throws Error with Status::ledger for a file that can't be used.
class Ledger {
public:
    // No path: in memory.
    explicit Ledger(const std::optional<std::string>& path = std::nullopt, bool fsync = false, double timeout_s = 10);
    ~Ledger();  // closes
    Ledger(const Ledger&) = delete;
    Ledger& operator=(const Ledger&) = delete;

    // `n` draws: of the pool first, then the next positions. `make_quota` makes the stream's quota, undrawn.
    Lease lease(const Stream& stream, const std::function<TreeQuota()>& make_quota, int64_t n);

    // Throws Error where the file belongs to another bundle than this one, at `bundle_path`. To a former one, too: its
    // streams must be moved first, or a program that still has that one would count beside this.
    void check_bundle(const std::string& bundle_id, const std::vector<std::string>& former_ids = {},
                      const std::string& bundle_path = "");

    // Of the streams of one scope, or of all; 1,000 at most. What dead processes hold counts as leased.
    std::vector<Standing> standings(const std::optional<std::string>& scope);

    // Gives back the draws of requests under way. The ledger is of no use afterwards.
    void close();

private:
    std::shared_ptr<LedgerState> state_;
};

}  // namespace ddm
