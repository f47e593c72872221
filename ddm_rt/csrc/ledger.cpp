#include "ledger.h"

#include <pthread.h>
#include <unistd.h>
#include <algorithm>
#include <charconv>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <system_error>

#include "error.h"
#include "fields.h"
#include "ledger_file.h"
#include "text.h"

namespace ddm {
namespace {

constexpr size_t CACHED_STREAMS = 256;
constexpr const char* IN_MEMORY = "memory";  // the owner of every lease of a ledger without a file
constexpr const char* FIND =
    "SELECT number, counts FROM streams WHERE bundle_id = ? AND scope = ? AND target = ? AND calibration_id = ?";

std::string counts_text(const TreeQuota& quota) {
    json::Out out = json::Out::object();
    for (const auto& [code, count] : quota.counts()) out[std::to_string(code)] = count;
    return json::write(out);
}

// The code and number of each member, or nothing where the text is no such object.
std::optional<CodeCounts> parse_counts(const std::string& text) {
    try {
        const json::Value tree = json::read(text);
        CodeCounts out;
        Field(tree, "counts").each_member([&](const std::string& name, const Field& count) {
            int64_t code = 0;
            const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), code);
            if (error != std::errc() || std::to_string(code) != name) count.refuse("the name of a code");
            out.emplace_back(code, count.whole());
        });
        return out;
    } catch (const Error&) {
        return std::nullopt;
    }
}

}  // namespace

// What a ledger and its leases share.
class LedgerState final {
public:
    // Of a lease.
    struct Key {
        std::string owner;
        int64_t number;
    };

    LedgerState(const std::optional<std::string>& path, bool fsync, double timeout_s)
        : given_(path ? clean_path(*path) : "in memory"), name_("ledger " + given_), fsync_(fsync),
          timeout_s_(timeout_s) {
        if (path) translated([&] { path_ = resolved_path(*path); });
        // A file that can't be used is refused now, and made when something is drawn.
        if (exists()) transaction([](Connection&) {});
        // The system forgets the handlers where the library is unloaded.
        [[maybe_unused]] static const int registered =
            ::pthread_atfork(before_fork, [] { after_fork(false); }, [] { after_fork(true); });
        const std::lock_guard guard(all_mutex_);
        all_.insert(this);
    }

    ~LedgerState() {
        std::unique_lock guard(all_mutex_);
        all_.erase(this);
        guard.unlock();  // to close may wait for the file
        // SQLite forbids a child the use of it, and closing is one.
        if (::getpid() != pid_) static_cast<void>(connection_.release());
    }

    std::vector<Draw> lease(const Stream& stream, const std::function<TreeQuota()>& make_quota, int64_t n, Key& key) {
        std::vector<Draw> draws;
        transaction([&](Connection& connection) {
            give_back(connection);
            check_bundle(connection, stream.bundle_id);
            key = {register_owner(connection), ++leases_};
            const auto [row, text] = find_or_add(connection, stream);
            draws = from_pool(connection, row, n);
            Statement take(connection, "UPDATE draws SET owner = ?, lease = ? WHERE stream = ? AND position = ?");
            for (const Draw& draw : draws) take.with(key.owner, key.number, row, draw.position).run();
            if (static_cast<int64_t>(draws.size()) == n) return;
            TreeQuota& quota = quota_at(stream, text, make_quota);
            int64_t position = 0;
            for (const auto& [code, count] : quota.counts()) position += count;
            Statement add(connection, "INSERT INTO draws VALUES (?, ?, ?, ?, ?)");
            while (static_cast<int64_t>(draws.size()) < n) {
                draws.push_back({position++, quota.draw()});
                add.with(row, draws.back().position, draws.back().code, key.owner, key.number).run();
            }
            const std::string now = counts_text(quota);
            Statement(connection, "UPDATE streams SET counts = ? WHERE number = ?", now, row).run();
            quotas_.at(stream).first = now;
        });
        return draws;
    }

    void commit(const Key& key, size_t n) {
        transaction([&](Connection& connection) {
            Statement(connection, "DELETE FROM draws WHERE owner = ? AND lease = ?", key.owner, key.number).run();
            const auto done = static_cast<size_t>(connection.changes());
            if (done == n) return;
            refuse(concat(": ", n - done, " of ", n, " draws of this request were taken back; it can't be completed"));
        });
    }

    // Where the file is locked now, the ledger's next use does it.
    void release(const Key& key) {
        {
            const std::lock_guard guard(returned_mutex_);
            returned_.push_back(key);
        }
        suppressed([&] { transaction([this](Connection& connection) { give_back(connection); }); });
    }

    void check_bundle(const std::string& bundle_id, const std::vector<std::string>& former_ids,
                      const std::string& bundle_path) {
        if (!exists()) return;
        transaction([&](Connection& connection) {
            Statement found(connection, "SELECT DISTINCT bundle_id FROM streams ORDER BY bundle_id");
            while (found.step()) {
                const std::string former = found.text(0);
                if (std::find(former_ids.begin(), former_ids.end(), former) == former_ids.end()) continue;
                refuse(concat(": belongs to bundle ", former.substr(0, 12), "…, from which this one was made; ",
                              "move it with `ddm-rt upgrade ", bundle_path, " --ledger ", given_, "`"));
            }
            check_bundle(connection, bundle_id);
        });
    }

    std::vector<Standing> standings(const std::string& scope) {
        std::vector<Standing> found;
        if (!exists()) return found;
        transaction([&](Connection& connection) {
            Statement streams(connection,
                              "SELECT number, bundle_id, scope, target, calibration_id, counts FROM streams "
                              "WHERE ? = '' OR scope = ? ORDER BY number LIMIT 1000",
                              scope, scope);
            while (streams.step()) {
                const std::string id = streams.text(4);
                const auto calibration_id = id.empty() ? std::nullopt : std::optional(id);
                Standing each{{streams.text(1), streams.text(2), streams.text(3), calibration_id}, {}, {}, {}};
                each.issued = parse(each.stream, streams.text(5));
                Statement draws(connection,
                                "SELECT code, owner IS NULL, count(*) FROM draws WHERE stream = ? GROUP BY 1, 2",
                                streams.integer(0));
                while (draws.step()) {
                    (draws.integer(1) ? each.pooled : each.leased).emplace_back(draws.integer(0), draws.integer(2));
                }
                found.push_back(std::move(each));
            }
        });
        return found;
    }

    void close() {
        if (::getpid() != pid_) return;
        // Where the file can't be written now, the end of the owner's lock does the same later.
        suppressed([&] {
            if (!closed_ && owner_) transaction([this](Connection& connection) { owner_->retire(connection); });
        });
        const std::lock_guard guard(mutex_);
        closed_ = true;
        owner_.reset();
        connection_.reset();
    }

private:
    // No transaction may be under way while the process is copied, and the child must not keep an owner's lock when the
    // parent dies.
    static void before_fork() {
        all_mutex_.lock();
        for (LedgerState* each : all_) each->mutex_.lock(), each->returned_mutex_.lock();
    }

    static void after_fork(bool in_child) {
        for (LedgerState* each : all_) {
            if (in_child && each->owner_) each->owner_->forget();
            each->returned_mutex_.unlock(), each->mutex_.unlock();
        }
        all_mutex_.unlock();
    }

    [[noreturn]] void refuse(const std::string& what) const { throw about(Status::ledger, name_, what); }

    static const std::string& calibration(const Stream& stream) {
        static const std::string none;
        return stream.calibration_id ? *stream.calibration_id : none;
    }

    template <typename What>
    static void suppressed(What what) {
        try {
            what();
        } catch (const Error&) {}
    }

    bool exists() {
        if (const std::lock_guard guard(mutex_); connection_) return true;
        if (!path_) return false;
        return translated([&] { return file_exists(*path_); });
    }

    // What the system or SQLite refuses, as an Error.
    template <typename What>
    auto translated(What what) -> decltype(what()) {
        try {
            return what();
        } catch (const SqliteError& error) {
            throw explained(error, name_, timeout_s_);
        } catch (const std::system_error& error) {
            refuse(concat(": cannot be made or opened (", error.code().message(), ")"));
        }
    }

    // All or nothing, one at a time over all threads and processes.
    template <typename What>
    void transaction(What what) {
        const std::lock_guard guard(mutex_);
        if (closed_) refuse(": closed");
        if (::getpid() != pid_) refuse(": opened before this process was forked; open it in each process");
        noted_ = 0;
        translated([&] {
            if (!connection_) connection_ = open_ledger(path_, name_, fsync_, timeout_s_);
            try {
                connection_->run("BEGIN IMMEDIATE");
                what(*connection_);
                connection_->run("COMMIT");
            } catch (...) {
                quotas_.clear();  // they may have drawn what is now undone
                undo();
                throw;
            }
        });
        const std::lock_guard also(returned_mutex_);
        returned_.erase(returned_.begin(), returned_.begin() + static_cast<ptrdiff_t>(noted_));
    }

    void undo() {
        try {
            if (connection_->in_transaction()) connection_->run("ROLLBACK");
        } catch (const SqliteError&) {  // what led here is told
        }
    }

    // Draws of lost leases and of dead processes go to the pool.
    void give_back(Connection& connection) {
        {
            const std::lock_guard guard(returned_mutex_);
            noted_ = returned_.size();  // other threads may add more
            for (const Key& key : returned_) {
                Statement(connection, "UPDATE draws SET owner = NULL, lease = NULL WHERE owner = ? AND lease = ?",
                          key.owner, key.number)
                    .run();
            }
        }
        if (path_) take_from_dead(connection, *path_, owner_ ? owner_->name : "");
    }

    // This ledger's name in the file; the first lease makes one.
    std::string register_owner(Connection& connection) {
        if (!path_) return IN_MEMORY;
        if (!owner_ || !owner_->registered(connection)) {
            owner_.reset();
            owner_ = std::make_unique<Owner>(connection, *path_);
        }
        return owner_->name;
    }

    void check_bundle(Connection& connection, const std::string& bundle_id) {
        if (!path_) return;
        Statement other(connection, "SELECT bundle_id FROM streams WHERE bundle_id != ? LIMIT 1", bundle_id);
        if (!other.step()) return;
        refuse(concat(": belongs to bundle ", other.text(0).substr(0, 12), "…; this one is ", bundle_id.substr(0, 12),
                      "…: name another file, or open the bundle that it belongs to"));
    }

    // The stream's number and counts; a new stream has no counts yet.
    static std::pair<int64_t, std::string> find_or_add(Connection& connection, const Stream& stream) {
        Statement found(connection, FIND, stream.bundle_id, stream.scope, stream.target, calibration(stream));
        if (found.step()) return {found.integer(0), found.text(1)};
        Statement(connection,
                  "INSERT INTO streams (bundle_id, scope, target, calibration_id, counts) VALUES (?, ?, ?, ?, '{}')",
                  stream.bundle_id, stream.scope, stream.target, calibration(stream))
            .run();
        return {connection.last_row(), "{}"};
    }

    static std::vector<Draw> from_pool(Connection& connection, int64_t row, int64_t n) {
        std::vector<Draw> draws;
        Statement pool(connection,
                       "SELECT position, code FROM draws WHERE owner IS NULL AND lease IS NULL AND stream = ? "
                       "ORDER BY position LIMIT ?",
                       row, n);
        while (pool.step()) draws.push_back({pool.integer(0), pool.integer(1)});
        return draws;
    }

    // The stream's quota where the counts `text` say; from memory where no other process has drawn meanwhile.
    TreeQuota& quota_at(const Stream& stream, const std::string& text, const std::function<TreeQuota()>& make_quota) {
        const auto cached = quotas_.find(stream);
        if (cached != quotas_.end() && cached->second.first == text) return cached->second.second;
        TreeQuota quota = make_quota();
        if (const CodeCounts counts = parse(stream, text); !counts.empty()) {
            try {
                quota.restore(counts);
            } catch (const Error& error) {
                refuse(concat(": damaged: scope ", repr(stream.scope), ", ", error.what(), "; restore a copy"));
            }
        }
        if (cached != quotas_.end()) quotas_.erase(cached);
        if (quotas_.size() >= CACHED_STREAMS) quotas_.erase(quotas_.begin());
        return quotas_.emplace(stream, std::pair(text, std::move(quota))).first->second.second;
    }

    CodeCounts parse(const Stream& stream, const std::string& text) const {
        if (auto counts = parse_counts(text)) return std::move(*counts);
        refuse(concat(": damaged: the counts of scope ", repr(stream.scope), " are unreadable"));
    }

    const std::string given_, name_;  // with the path as it was given
    std::optional<std::string> path_;
    const bool fsync_;
    const double timeout_s_;
    const pid_t pid_ = ::getpid();
    std::mutex mutex_;  // of all below but `returned_`
    std::unique_ptr<Connection> connection_;
    std::unique_ptr<Owner> owner_;
    std::map<Stream, std::pair<std::string, TreeQuota>> quotas_;  // with the counts it stands at, as in the file
    int64_t leases_ = 0;
    size_t noted_ = 0;  // so many of `returned_` are given back in this transaction
    bool closed_ = false;
    std::mutex returned_mutex_;
    std::deque<Key> returned_;  // leases to give back

    static inline std::mutex all_mutex_;  // held from before a fork to after it
    static inline std::set<LedgerState*> all_;
};

Lease::Lease(std::shared_ptr<LedgerState> ledger, std::string owner, int64_t number, std::vector<Draw> draws)
    : ledger_(std::move(ledger)), owner_(std::move(owner)), number_(number), draws_(std::move(draws)) {}

Lease::Lease(Lease&& other) noexcept = default;

Lease::~Lease() {
    try {
        release();
    } catch (...) {  // no memory is left: the end of the owner's lock gives the draws back
    }
}

void Lease::commit() {
    if (!ledger_) throw std::logic_error("the draws of this lease were committed or given back before");
    ledger_->commit({owner_, number_}, draws_.size());
    ledger_.reset();
}

void Lease::release() {
    if (const auto ledger = std::exchange(ledger_, nullptr)) ledger->release({owner_, number_});
}

Ledger::Ledger(const std::optional<std::string>& path, bool fsync, double timeout_s)
    : state_(std::make_shared<LedgerState>(path, fsync, timeout_s)) {}

Ledger::~Ledger() {
    try {
        close();
    } catch (...) {  // no memory is left: the end of the owner's lock gives the draws back
    }
}

Lease Ledger::lease(const Stream& stream, const std::function<TreeQuota()>& make_quota, int64_t n) {
    LedgerState::Key key;
    auto draws = state_->lease(stream, make_quota, n, key);
    return {state_, key.owner, key.number, std::move(draws)};
}

void Ledger::check_bundle(const std::string& bundle_id, const std::vector<std::string>& former_ids,
                          const std::string& bundle_path) {
    state_->check_bundle(bundle_id, former_ids, bundle_path);
}

std::vector<Standing> Ledger::standings(const std::optional<std::string>& scope) {
    return state_->standings(scope.value_or(""));
}

void Ledger::close() { state_->close(); }

}  // namespace ddm
