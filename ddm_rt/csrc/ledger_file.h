// The ledger's file: how it is made, opened and refused; and which of the processes that use it are alive
// (ddm_rt/sample/balance/ledger_file.py, whose file this is).
#pragma once

#include <sqlite3.h>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "error.h"

namespace ddm {

struct SqliteError {
    int code;  // the primary one
    std::string message;
};

// Throws SqliteError.
class Connection {
public:
    // With `create`, a file is made where there is none. ":memory:" is none.
    Connection(const std::string& path, bool create, double timeout_s);
    ~Connection() { sqlite3_close_v2(handle_); }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    void run(const std::string& script);
    bool in_transaction() const { return !sqlite3_get_autocommit(handle_); }
    int64_t changes() const { return sqlite3_changes64(handle_); }
    int64_t last_row() const { return sqlite3_last_insert_rowid(handle_); }

private:
    friend class Statement;
    sqlite3* handle_ = nullptr;
};

class Statement {
public:
    template <typename... Values>
    Statement(Connection& connection, const char* sql, const Values&... values) : Statement(connection, sql, nullptr) {
        with(values...);
    }
    // Again, with other values.
    template <typename... Values>
    Statement& with(const Values&... values) {
        sqlite3_reset(handle_);
        int place = 0;
        (bind(++place, values), ...);
        return *this;
    }
    ~Statement() { sqlite3_finalize(handle_); }
    Statement(const Statement&) = delete;
    Statement& operator=(const Statement&) = delete;

    bool step();  // whether there is a row
    void run() {
        while (step()) {}
    }

    int64_t integer(int column) const { return sqlite3_column_int64(handle_, column); }
    std::string text(int column) const;

private:
    Statement(Connection& connection, const char* sql, std::nullptr_t);
    void bind(int place, const std::string& value);
    void bind(int place, int64_t value);
    void check(int code) const;

    sqlite3* connection_;
    sqlite3_stmt* handle_ = nullptr;
};

// The absolute path of the file that `path` means in the folder that the process is in now: it may go to another. A
// link to a ledger is that ledger, so links are followed, one to a file that isn't there yet too. Throws
// std::system_error.
std::string resolved_path(const std::string& path);

// A connection to the ledger at the resolved `path`, which is made where there is none, or to one in memory. Throws
// Error with Status::ledger for a file that can't be used, which is left as it is; `ledger` is what the message names.
std::unique_ptr<Connection> open_ledger(const std::optional<std::string>& path, const std::string& ledger, bool fsync,
                                        double timeout_s);

// What SQLite's error means to the user.
Error explained(const SqliteError& error, const std::string& ledger, double timeout_s);

bool file_exists(const std::string& path);

// A process's name in a ledger, and the lock that shows it alive: the system ends it with the process. Paths of ledgers
// are resolved here and below: an owner's lock lies beside the file itself.
class Owner {
public:
    // Enters a new name, in the transaction in which the lock is made: nobody sees one without the other.
    Owner(Connection& connection, const std::string& ledger);
    ~Owner();  // unlocks
    Owner(const Owner&) = delete;
    Owner& operator=(const Owner&) = delete;

    bool registered(Connection& connection) const;
    void retire(Connection& connection) const;  // take the name off; draws that it still holds go to the pool
    void forget();                              // in a forked child: the file stays the parent's

    const std::string name;

private:
    std::string lock_;
    int handle_;
};

// The draws of owners that are no longer alive go to the pool.
void take_from_dead(Connection& connection, const std::string& ledger, const std::string& own);

}  // namespace ddm
