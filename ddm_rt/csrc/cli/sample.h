// `ddm-cli sample`: what `ddm-rt sample` does without Python; shards are left to that.
#ifndef DDM_CLI_SAMPLE_H
#define DDM_CLI_SAMPLE_H

#include <string>
#include <vector>

namespace cli {

// Throws Refused.
void sample(const std::vector<std::string>& arguments);

}  // namespace cli

#endif
