// ddm-cli: the library from a shell. A user's mistake is one line on stderr and exit code 2.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "arguments.h"
#include "ddm_rt.h"
#include "sample.h"

namespace {

void run(const std::string& command, const std::vector<std::string>& arguments) {
    if (command == "sample") {
        cli::sample(arguments);
    } else if (command == "backends") {
        const char* backends = ddm_rt_backends();
        if (!backends) throw cli::Refused(ddm_rt_last_error());
        std::printf("%s\n", backends);
    } else if (command == "version") {
        std::printf("%s\n", ddm_rt_version());
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
        std::printf("Usage: ddm-cli sample|backends|version [ARGUMENTS]\n");
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
