// ddm-cli: the library from a shell. A user's mistake is one line on stderr and exit code 2.
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "ddm_rt.h"
#include "sample.h"

namespace {

constexpr const char* kUsage = "Usage: ddm-cli sample|backends|version [ARGUMENTS]\n";

// Whether there is more to do than to show the usage of a command without arguments.
bool goes_on(const std::string& command, const std::vector<std::string>& arguments) {
    bool help = false;
    std::optional<std::string> more;
    cli::parse(arguments, {{"--help", &help, ""}, {"-h", &help, ""}}, more);
    if (more) throw cli::Refused("Got unexpected extra argument (" + *more + ")");
    if (help) std::printf("Usage: ddm-cli %s\n", command.c_str());
    return !help;
}

void run(const std::string& command, const std::vector<std::string>& arguments) {
    if (command == "sample") {
        cli::sample(arguments);
    } else if (command == "backends") {
        if (!goes_on(command, arguments)) return;
        const char* backends = ddm_rt_backends();
        if (!backends) throw cli::Refused(ddm_rt_last_error());
        std::printf("%s\n", backends);
    } else if (command == "version") {
        if (goes_on(command, arguments)) std::printf("%s\n", ddm_rt_version());
    } else if (command == "--help" || command == "-h") {
        std::printf("%s", kUsage);
    } else {
        throw cli::Refused("No such command '" + command + "'; commands: sample, backends, version");
    }
}

// As one line: an error may quote what has several.
std::string unbroken(const std::string& text) {
    std::string line;
    for (const char letter : text) {
        const bool blank = letter == ' ' || (letter >= '\t' && letter <= '\r');
        if (!blank) line += letter;
        else if (!line.empty() && line.back() != ' ') line += ' ';
    }
    if (!line.empty() && line.back() == ' ') line.pop_back();
    return line;
}

}  // namespace

int main(int count, char** values) {
    if (count < 2) {
        std::printf("%s", kUsage);
        return 2;
    }
    try {
        run(values[1], {values + 2, values + count});
        return 0;
    } catch (const cli::Refused& error) {
        std::fprintf(stderr, "error: %s\n", unbroken(error.what()).c_str());
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", unbroken(error.what()).c_str());
        return 1;
    }
}
