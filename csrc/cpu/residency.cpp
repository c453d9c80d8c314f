#include "cpu/residency.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace llama_ext::cpu {

Residency::~Residency() {
    for (const Unit* u : recent_)
        for (const Resident& r : u->ranges) r.give_back();
}

void Residency::add(int layer, Part part, int expert, const std::byte* data, size_t bytes) {
    const size_t at = index(layer, part), e = static_cast<size_t>(expert);
    if (units_.size() <= at) units_.resize(at + 1);
    if (units_[at].size() <= e) units_[at].resize(e + 1);
    Unit& u = units_[at][e];
    u.ranges.push_back({data, bytes});
    u.bytes += u.ranges.back().most_bytes();
}

void Residency::prepare(int together) {
    std::vector<Resident*> ranges;
    for (std::vector<Unit>& experts : units_)
        for (Unit& u : experts)
            for (Resident& r : u.ranges) ranges.push_back(&r);
    isolate(&ranges);
    size_t needed = 0;
    const auto largest = [](const std::vector<Unit>& experts) {
        size_t bytes = 0;
        for (const Unit& u : experts) bytes = std::max(bytes, u.bytes);
        return bytes;
    };
    for (size_t at = 0; at + 1 < units_.size(); at += 2)
        needed = std::max(needed, (largest(units_[at]) + largest(units_[at + 1])) * static_cast<size_t>(together));
    if (needed > budget_)
        throw std::invalid_argument("the experts of one token in one layer take " + std::to_string(needed) + " bytes, " +
                                    std::to_string(budget_) + " may be resident");
}

void Residency::use(int layer, Part part, std::span<const int32_t> experts) {
    std::vector<Unit>& units = units_[index(layer, part)];
    size_t needed = 0;
    for (const int32_t e : experts) {
        Unit& u = units[static_cast<size_t>(e)];
        // To the end of the list, so that what is given back below is none of these.
        if (u.resident) {
            ++hits_;
            recent_.splice(recent_.end(), recent_, u.place);
        } else {
            ++misses_;
            needed += u.bytes;
        }
    }
    while (resident_ + needed > budget_ && !recent_.empty()) {
        Unit& oldest = *recent_.front();
        recent_.pop_front();
        oldest.resident = false;
        resident_ -= oldest.bytes;
        for (const Resident& r : oldest.ranges) r.give_back();
    }
    for (const int32_t e : experts) {
        Unit& u = units[static_cast<size_t>(e)];
        if (u.resident) continue;
        u.resident = true;
        u.place = recent_.insert(recent_.end(), &u);
        resident_ += u.bytes;
        expect(layer, part, e);
    }
}

void Residency::expect(int layer, Part part, int32_t expert) const {
    for (const Resident& r : units_[index(layer, part)][static_cast<size_t>(expert)].ranges) read_ahead(r.data, r.bytes);
}

}  // namespace llama_ext::cpu
