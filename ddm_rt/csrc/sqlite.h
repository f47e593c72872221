// The few uses of SQLite that the ledger makes of it.
#ifndef DDM_RT_SQLITE_H
#define DDM_RT_SQLITE_H

#include <cstdint>
#include <optional>
#include <string>
#include <sqlite3.h>

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
        int place = 0;
        (bind(++place, values), ...);
    }
    ~Statement() { sqlite3_finalize(handle_); }
    Statement(const Statement&) = delete;
    Statement& operator=(const Statement&) = delete;

    bool step();  // whether there is a row
    void run() { while (step()) {} }

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

}  // namespace ddm

#endif
