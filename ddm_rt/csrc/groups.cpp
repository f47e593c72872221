#include "groups.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include "error.h"
#include "quota.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr const char* RESERVED = "code";  // targets over top codes start with it

std::vector<std::string> names_of(const std::vector<Attribute>& attributes) {
    std::vector<std::string> names;
    for (const Attribute& attribute : attributes) names.push_back(attribute.name);
    return names;
}

bool holds_twice(const std::vector<std::string>& names) {
    return std::set<std::string>(names.begin(), names.end()).size() != names.size();
}

// The first name that stood there before.
std::string twice(const std::vector<std::string>& names) {
    std::set<std::string> seen;
    return *std::find_if(names.begin(), names.end(), [&](const auto& name) { return !seen.insert(name).second; });
}

bool is_name(const std::string& name) {
    return !name.empty() && strip(name) == name && name.find_first_of("=,;:&?\n") == name.npos;
}

std::vector<std::string> stripped(const std::vector<std::string>& parts) {
    std::vector<std::string> out;
    for (const std::string& part : parts) out.emplace_back(strip(part));
    return out;
}

// One target, for the errors that quote it.
class Target {
public:
    Target(const std::string& text, const std::vector<Attribute>& attributes) : text_(text), attributes_(attributes) {}

    Part part(const std::string& piece) const {
        const size_t colon = piece.rfind(':');
        std::optional<std::vector<Attribute>> chosen;
        if (colon != piece.npos) chosen = named(piece.substr(0, colon));
        const std::string body = colon == piece.npos ? piece : piece.substr(colon + 1);
        if (strip(body) == "uniform") {
            if (!chosen) fail("'uniform' of what? expected ATTRIBUTE:uniform");
            const size_t count = cells(*chosen).size();
            return {*chosen, std::vector<double>(count, 1 / static_cast<double>(count))};
        }
        const std::vector<Attribute> among = chosen.value_or(attributes_);
        std::vector<std::pair<std::string, double>> wanted;  // by cell
        for (const std::string& item : split(body, ',')) add(wanted, item, among, chosen);
        std::vector<double> values;
        for (const auto& [cell, share] : wanted) values.push_back(share);
        const double total = exact_sum(values);
        if (std::abs(total - 1) > SUM_TOLERANCE) {
            fail(concat("the shares of ", join("&", names_of(*chosen)), " sum to ", general(total, 9), "; expected 1"));
        }
        Part part{*chosen, {}};
        for (const std::string& cell : cells(*chosen)) {
            const auto found =
                std::find_if(wanted.begin(), wanted.end(), [&](const auto& each) { return each.first == cell; });
            part.shares.push_back(found == wanted.end() ? 0 : found->second / total);
        }
        return part;
    }

    [[noreturn]] void fail(const std::string& problem) const {
        throw about("target", concat(" ", repr(text_), ": ", problem));
    }

private:
    std::vector<Attribute> named(const std::string& text) const {
        const std::vector<std::string> names = stripped(split(text, '&')), known = names_of(attributes_);
        for (const std::string& name : names) {
            if (std::find(known.begin(), known.end(), name) == known.end()) {
                fail(concat("attribute ", repr(name), " is unknown; known: ", join(", ", known)));
            }
        }
        if (holds_twice(names)) fail(twice(names) + " is named twice");
        std::vector<Attribute> out;
        for (const Attribute& attribute : attributes_) {
            if (std::find(names.begin(), names.end(), attribute.name) != names.end()) out.push_back(attribute);
        }
        return out;
    }

    void add(std::vector<std::pair<std::string, double>>& wanted, const std::string& item,
             const std::vector<Attribute>& among, std::optional<std::vector<Attribute>>& chosen) const {
        const size_t equals = item.find('=');
        if (equals == item.npos) fail(repr(strip(item)) + "; expected GROUP=SHARE");
        const std::string left(strip(item.substr(0, equals))), share(strip(item.substr(equals + 1)));
        const std::vector<std::string> groups = stripped(split(left, '&'));
        const std::vector<Attribute> found = owners(groups, among);
        const std::vector<std::string> names = names_of(found);
        if (!chosen) {
            chosen.emplace();
            for (const Attribute& attribute : attributes_) {
                if (std::find(names.begin(), names.end(), attribute.name) != names.end()) chosen->push_back(attribute);
            }
        }
        const std::vector<std::string> wanted_names = names_of(*chosen);
        if (std::set(names.begin(), names.end()) != std::set(wanted_names.begin(), wanted_names.end())) {
            fail(concat(left, " names ", join(", ", names), "; this part is about ", join(", ", wanted_names),
                        " (parts are joined by ;)"));
        }
        std::vector<std::string> cell;
        for (const std::string& name : wanted_names) {
            cell.push_back(groups[static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin())]);
        }
        const std::string joined = join("&", cell);
        for (const auto& [other, value] : wanted) {
            if (other == joined) fail(left + " is given twice");
        }
        wanted.emplace_back(joined, share_of(share, left));
    }

    // The attribute of each group.
    std::vector<Attribute> owners(const std::vector<std::string>& groups, const std::vector<Attribute>& among) const {
        std::vector<Attribute> found;
        for (const std::string& group : groups) {
            std::vector<Attribute> having;
            std::vector<std::string> known;
            for (const Attribute& attribute : among) {
                known.push_back(concat(attribute.name, ": ", join(", ", attribute.groups)));
                const auto& list = attribute.groups;
                if (std::find(list.begin(), list.end(), group) != list.end()) having.push_back(attribute);
            }
            if (having.empty()) fail(concat("group ", repr(group), " is unknown; known: ", join("; ", known)));
            if (having.size() > 1) {
                fail(concat(repr(group), " is a group of ", join(", ", names_of(having)),
                            "; expected ATTRIBUTE: before it"));
            }
            found.push_back(having[0]);
        }
        if (holds_twice(names_of(found))) {
            fail(concat(join("&", groups), " names two groups of ", twice(names_of(found))));
        }
        return found;
    }

    double share_of(const std::string& share, const std::string& group) const {
        const auto value = parse_float(share);
        if (!value) fail(concat(repr(share), " is no number; expected the share of ", group));
        if (!(std::isfinite(*value) && *value >= 0)) {
            fail(concat("the share of ", group, " is ", repr(*value), "; expected a finite number, not negative"));
        }
        return *value;
    }

    const std::string& text_;
    const std::vector<Attribute>& attributes_;
};

}  // namespace

std::string Part::text() const {
    std::vector<std::string> wanted;
    const std::vector<std::string> names = cells(attributes);
    for (size_t i = 0; i < shares.size(); ++i) {
        if (shares[i] != 0) wanted.push_back(concat(names[i], "=", general(shares[i], 9)));
    }
    return concat(join("&", names_of(attributes)), ":", join(",", wanted));
}

std::vector<std::string> cells(const std::vector<Attribute>& attributes) {
    std::vector<std::string> out = {""};
    for (size_t i = 0; i < attributes.size(); ++i) {
        std::vector<std::string> longer;
        for (const std::string& cell : out) {
            for (const std::string& group : attributes[i].groups) longer.push_back(cell + (i ? "&" : "") + group);
        }
        out = std::move(longer);
    }
    return out;
}

void check_attributes(const std::vector<Attribute>& attributes, const std::string& where) {
    const std::vector<std::string> names = names_of(attributes);
    if (names.empty()) throw about(where, ": no attribute; expected at least one, with two or more groups");
    if (holds_twice(names)) {
        throw about(where, concat(": the attributes are ", join(", ", names), "; expected different names"));
    }
    for (const Attribute& attribute : attributes) {
        std::vector<std::string> every = {attribute.name};
        every.insert(every.end(), attribute.groups.begin(), attribute.groups.end());
        for (const std::string& name : every) {
            if (is_name(name)) continue;
            throw about(where,
                        concat(": ", repr(name), " is no name for a group; expected text without any of = , ; : & ?"));
        }
        if (attribute.name == RESERVED) {
            throw about(where, concat(": the attribute ", repr(RESERVED),
                                      " would read as a code in a target; name it otherwise"));
        }
        if (attribute.groups.size() < 2 || holds_twice(attribute.groups)) {
            const std::string groups = join(", ", attribute.groups);
            throw about(where, concat(": ", attribute.name, " has the groups ", groups.empty() ? "(none)" : groups,
                                      "; expected two or more different ones"));
        }
    }
}

std::vector<Part> parse_group_target(const std::string& text, const std::vector<Attribute>& attributes) {
    const Target target(text, attributes);
    std::vector<Part> parts;
    std::vector<std::string> used;
    for (const std::string& piece : split(text, ';')) {
        parts.push_back(target.part(piece));
        for (const Attribute& attribute : parts.back().attributes) used.push_back(attribute.name);
    }
    if (holds_twice(used)) target.fail(twice(used) + " stands in two parts; expected each attribute in one");
    const std::vector<std::string> names = names_of(attributes);
    std::stable_sort(parts.begin(), parts.end(), [&](const Part& a, const Part& b) {
        const auto place = [&](const Part& part) {
            return std::find(names.begin(), names.end(), part.attributes[0].name);
        };
        return place(a) < place(b);
    });
    return parts;
}

}  // namespace ddm
