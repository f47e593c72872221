#include "ledger_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <array>
#include <cerrno>
#include <deque>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "files.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr int64_t APPLICATION_ID = 0x44444D31;  // "DDM1": an SQLite file with another one is no ledger
static_assert(APPLICATION_ID == 1145326897, "as in the schema");
constexpr int64_t VERSION = 1;
constexpr int MOST_LINKS = 40;  // on the way to a file, as Linux has it
// As in Python to the letter: either side makes the file that the other goes on with.
constexpr const char* SCHEMA = R"sql(
PRAGMA page_size = 1024;
PRAGMA application_id = 1145326897;
PRAGMA user_version = 1;
CREATE TABLE streams (
    number INTEGER PRIMARY KEY,
    bundle_id TEXT NOT NULL,
    scope TEXT NOT NULL,
    target TEXT NOT NULL,
    calibration_id TEXT NOT NULL,  -- '' for none
    counts TEXT NOT NULL,  -- JSON: for each code, how many positions were handed out at least once
    UNIQUE (bundle_id, scope, target, calibration_id)
);
CREATE TABLE draws (  -- handed out and not done: leased by an owner, or in the pool
    stream INTEGER NOT NULL REFERENCES streams,
    position INTEGER NOT NULL,
    code INTEGER NOT NULL,
    owner TEXT,  -- NULL in the pool
    lease INTEGER,
    PRIMARY KEY (stream, position)
) WITHOUT ROWID;
CREATE INDEX draws_of_leases ON draws (owner, lease, stream, position);
CREATE TABLE owners (name TEXT PRIMARY KEY) WITHOUT ROWID;
)sql";

[[noreturn]] void refuse_file(const std::string& ledger, const std::string& rest) {
    throw about(Status::ledger, ledger, rest);
}

// A file's handle, and with it its lock, as long as this stands.
class Handle {
public:
    Handle(const std::string& path, int flags) : number(::open(path.c_str(), flags | O_CLOEXEC)) {
        if (number < 0) fail_with_errno(path);
    }
    ~Handle() { ::close(number); }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;

    const int number;
};

void take_lock(int handle, const std::string& path) {
    while (::flock(handle, LOCK_EX)) {
        if (errno != EINTR) fail_with_errno(path);
    }
}

std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// An empty ledger under another name, then renamed: a process that is killed leaves none half-made.
void create(const std::string& path) {
    const Handle folder(folder_of(path), O_RDONLY);
    take_lock(folder.number, path);
    if (file_exists(path)) return;
    const std::string made = join_path(folder_of(path), "." + name_of(path) + ".new");
    for (const char* suffix : {"", "-journal", "-wal", "-shm"}) ::unlink((made + suffix).c_str());
    {
        Connection connection(made, true, 5);
        connection.run(std::string("PRAGMA synchronous = OFF;") + SCHEMA);
        connection.run("PRAGMA journal_mode = WAL");
    }
    const Handle file(made, O_RDONLY);
    if (::fsync(file.number) || ::rename(made.c_str(), path.c_str()) || ::fsync(folder.number)) fail_with_errno(path);
}

int64_t pragma(Connection& connection, const char* sql) {
    Statement statement(connection, sql);
    return statement.step() ? statement.integer(0) : 0;
}

std::string single_spaced(const std::string& text) {
    std::vector<std::string> words;
    for (const std::string& line : split(text, '\n')) {
        for (const std::string& word : split(line, ' ')) {
            if (!strip(word).empty()) words.emplace_back(strip(word));
        }
    }
    return join(" ", words);
}

void check(Connection& connection, const std::string& path, const std::string& ledger) {
    struct stat found;
    if (::stat(path.c_str(), &found)) fail_with_errno(path);
    if (found.st_size == 0) refuse_file(ledger, ": empty; expected a ledger, or no file, for a new one");
    const int64_t application = pragma(connection, "PRAGMA application_id");
    const int64_t version = pragma(connection, "PRAGMA user_version");
    if (application != APPLICATION_ID) refuse_file(ledger, ": an SQLite file, but no ledger; name another file");
    if (version != VERSION) refuse_file(ledger, concat(": of version ", version, "; this program reads ", VERSION));
    Statement quick(connection, "PRAGMA quick_check(1)");
    const std::string verdict = quick.step() ? quick.text(0) : "";
    if (verdict != "ok") {
        refuse_file(ledger, concat(": damaged (", single_spaced(verdict), "); restore a copy, or name another file"));
    }
}

std::string lock_file(const std::string& ledger, const std::string& name) { return ledger + "-owner-" + name; }

bool is_locked(const std::string& path) {
    const int handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (handle < 0) {
        if (errno == ENOENT) return false;
        fail_with_errno(path);
    }
    const bool locked = ::flock(handle, LOCK_EX | LOCK_NB) != 0;
    ::close(handle);
    return locked;
}

std::vector<std::string> owners(Connection& connection) {
    std::vector<std::string> names;
    Statement statement(connection, "SELECT name FROM owners");
    while (statement.step()) names.push_back(statement.text(0));
    return names;
}

void take_back(Connection& connection, const std::string& name) {
    Statement(connection, "UPDATE draws SET owner = NULL, lease = NULL WHERE owner = ?", name).run();
    Statement(connection, "DELETE FROM owners WHERE name = ?", name).run();
}

// Lock files of processes that were killed before their names were entered.
void remove_strays(Connection& connection, const std::string& ledger) {
    const std::vector<std::string> list = owners(connection);
    const std::set<std::string> names(list.begin(), list.end());
    const std::string prefix = lock_file(name_of(ledger), "");
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(folder_of(ledger).c_str()), ::closedir);
    if (!folder) fail_with_errno(ledger);
    while (const dirent* entry = ::readdir(folder.get())) {
        const std::string found = entry->d_name;
        if (!found.starts_with(prefix) || names.contains(found.substr(prefix.size()))) continue;
        const std::string path = join_path(folder_of(ledger), found);
        if (!is_locked(path)) ::unlink(path.c_str());
    }
}

std::string random_name() {
    std::array<unsigned char, 8> bytes;
    if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) fail_with_errno("getrandom");
    std::string name;
    for (const unsigned char byte : bytes) {
        name += "0123456789abcdef"[byte >> 4];
        name += "0123456789abcdef"[byte & 15];
    }
    return name;
}

[[noreturn]] void fail(sqlite3* handle, int code) {
    const int found = handle ? sqlite3_extended_errcode(handle) : code;
    throw SqliteError{found & 0xFF, handle ? sqlite3_errmsg(handle) : sqlite3_errstr(code)};
}

}  // namespace

// realpath() would refuse a file that isn't there yet, and weakly_canonical() doesn't follow a link to one.
std::string resolved_path(const std::string& path) {
    std::filesystem::path out = "/";
    std::deque<std::string> rest;
    const auto go_on_with = [&](const std::string& more) {
        const std::vector<std::string> parts = split(more, '/');
        rest.insert(rest.begin(), parts.begin(), parts.end());
    };
    go_on_with(std::filesystem::absolute(clean_path(path)).string());
    for (int links = 0; !rest.empty();) {
        const std::string part = std::exchange(rest.front(), {});
        rest.pop_front();
        if (part == "..") out = out.parent_path();
        if (part.empty() || part == "." || part == "..") continue;
        std::error_code no_link;
        const std::filesystem::path target = std::filesystem::read_symlink(out / part, no_link);
        if (target.empty()) {
            out /= part;
            continue;
        }
        if (++links > MOST_LINKS) throw std::system_error(ELOOP, std::generic_category(), path);
        if (target.is_absolute()) out = "/";
        go_on_with(target.string());
    }
    return out.string();
}

std::unique_ptr<Connection> open_ledger(const std::optional<std::string>& path, const std::string& ledger, bool fsync,
                                        double timeout_s) {
    if (!path) {
        auto connection = std::make_unique<Connection>(":memory:", true, timeout_s);
        connection->run(SCHEMA);
        return connection;
    }
    try {
        if (!file_exists(*path)) create(*path);
        // Nothing is created here: a file that is moved away meanwhile is no reason to begin at zero.
        auto connection = std::make_unique<Connection>(*path, false, timeout_s);
        check(*connection, *path, ledger);
        connection->run(fsync ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL");
        connection->run("PRAGMA wal_autocheckpoint = 4096");
        return connection;
    } catch (const SqliteError& error) {
        throw explained(error, ledger, timeout_s);
    } catch (const std::system_error& error) {
        refuse_file(ledger, concat(": cannot be made or opened (", error.code().message(), ")"));
    }
}

Error explained(const SqliteError& error, const std::string& ledger, double timeout_s) {
    const auto told = [&](const std::string& what) { return about(Status::ledger, ledger, what); };
    switch (error.code) {
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
            return told(
                concat(": locked by another process for more than ", general(timeout_s, 6), " s; nothing was changed"));
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
            return told(concat(": damaged, or no ledger (", error.message, "); restore a copy, or name another file"));
        case SQLITE_READONLY:
        case SQLITE_CANTOPEN:
        case SQLITE_PERM:
            return told(concat(": cannot be written (", error.message, "); a ledger must be, and its directory too"));
        default: return told(concat(": ", error.message, "; nothing was changed"));
    }
}

bool file_exists(const std::string& path) {
    struct stat found;
    if (::stat(path.c_str(), &found) == 0) return true;
    if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP) return false;
    fail_with_errno(path);
}

Owner::Owner(Connection& connection, const std::string& ledger)
    : name(random_name()), lock_(lock_file(ledger, name)),
      handle_(::open(lock_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644)) {
    if (handle_ < 0) fail_with_errno(lock_);
    try {
        take_lock(handle_, lock_);
        Statement(connection, "INSERT OR IGNORE INTO owners VALUES (?)", name).run();
        remove_strays(connection, ledger);
    } catch (...) {
        ::unlink(lock_.c_str());
        ::close(handle_);
        throw;
    }
}

Owner::~Owner() {
    if (handle_ < 0) return;
    ::unlink(lock_.c_str());
    ::close(handle_);
}

bool Owner::registered(Connection& connection) const {
    return Statement(connection, "SELECT 1 FROM owners WHERE name = ?", name).step();
}

void Owner::retire(Connection& connection) const { take_back(connection, name); }

void Owner::forget() {
    ::close(handle_);
    handle_ = -1;
}

void take_from_dead(Connection& connection, const std::string& ledger, const std::string& own) {
    for (const std::string& name : owners(connection)) {
        const std::string path = lock_file(ledger, name);
        if (name == own || is_locked(path)) continue;
        take_back(connection, name);
        ::unlink(path.c_str());
    }
}

Connection::Connection(const std::string& path, bool create, double timeout_s) {
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | (create ? SQLITE_OPEN_CREATE : 0);
    const int code = sqlite3_open_v2(path.c_str(), &handle_, flags, nullptr);
    if (code == SQLITE_OK) {
        sqlite3_busy_timeout(handle_, static_cast<int>(timeout_s * 1000));
        return;
    }
    const SqliteError error{code & 0xFF, handle_ ? sqlite3_errmsg(handle_) : sqlite3_errstr(code)};
    sqlite3_close_v2(handle_);
    throw error;
}

void Connection::run(const std::string& script) {
    if (const int code = sqlite3_exec(handle_, script.c_str(), nullptr, nullptr, nullptr)) fail(handle_, code);
}

Statement::Statement(Connection& connection, const char* sql, std::nullptr_t) : connection_(connection.handle_) {
    check(sqlite3_prepare_v2(connection_, sql, -1, &handle_, nullptr));
}

bool Statement::step() {
    const int code = sqlite3_step(handle_);
    if (code != SQLITE_ROW && code != SQLITE_DONE) fail(connection_, code);
    return code == SQLITE_ROW;
}

std::string Statement::text(int column) const {
    const auto* found = reinterpret_cast<const char*>(sqlite3_column_text(handle_, column));
    return found ? std::string(found, static_cast<size_t>(sqlite3_column_bytes(handle_, column))) : std::string();
}

void Statement::bind(int place, const std::string& value) {
    check(sqlite3_bind_text64(handle_, place, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
}

void Statement::bind(int place, int64_t value) { check(sqlite3_bind_int64(handle_, place, value)); }

void Statement::check(int code) const {
    if (code != SQLITE_OK) fail(connection_, code);
}

}  // namespace ddm
