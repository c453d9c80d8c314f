// The thread team under load, for ThreadSanitizer: members write plain memory in one phase and read each other's in the next, so
// that only the barrier and the run keep them apart. `race` skips the barrier: the sanitizer must report it.
//
//     team_stress [clean | race] [seconds]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/team.h"

using llama_ext::cpu::share;
using llama_ext::cpu::Share;
using llama_ext::cpu::Team;

namespace {

int failures = 0;

void check(bool holds, const char* what, int size, int epoch) {
    if (holds) return;
    std::printf("FAILED: %s (size %d, epoch %d)\n", what, size, epoch);
    ++failures;
}

// Each phase turns one array into the other by a rule that reads a neighbour's cell.
void phases(Team& team, int epochs, bool barrier, int sleeper) {
    const int size = team.size(), cells = 4 * size, rounds = 6;
    std::vector<long> first(static_cast<size_t>(cells), 0), second(static_cast<size_t>(cells), 0);
    for (int epoch = 0; epoch < epochs; ++epoch) {
        team.run([&](int member) {
            const Share mine = share(cells, member, size);
            for (int round = 0; round < rounds; ++round) {
                // Past the 50 us of spinning: the others go to sleep and must be woken.
                if (sleeper > 0 && (epoch * rounds + round) % sleeper == 0 && member == (epoch + round) % size)
                    std::this_thread::sleep_for(std::chrono::microseconds(300));
                std::vector<long>&from = round % 2 ? second : first, &to = round % 2 ? first : second;
                for (int64_t i = mine.begin; i < mine.end; ++i)
                    to[static_cast<size_t>(i)] = from[static_cast<size_t>((i + cells / size) % cells)] + 1;
                if (barrier && round + 1 < rounds) team.barrier();
            }
        });
        // After run() everything that members wrote is the caller's to read, without a further barrier.
        if (!barrier) continue;
        for (long cell : first) check(cell == static_cast<long>(rounds) * (epoch + 1), "a cell missed a phase", size, epoch);
    }
}

void counts(Team& team, int runs) {
    std::vector<int> calls(static_cast<size_t>(team.size()), 0);
    for (int run = 0; run < runs; ++run) team.run([&](int member) { ++calls[static_cast<size_t>(member)]; });
    for (int n : calls) check(n == runs, "a member missed a run", team.size(), runs);
}

void shares() {
    for (int size = 1; size <= 8; ++size) {
        for (int64_t count : {0, 1, 2, 7, 8, 9, 1000}) {
            int64_t next = 0, least = count, most = 0;
            for (int member = 0; member < size; ++member) {
                const Share s = share(count, member, size);
                check(s.begin == next && s.end >= s.begin, "shares do not join", size, member);
                next = s.end;
                least = std::min(least, s.end - s.begin);
                most = std::max(most, s.end - s.begin);
            }
            check(next == count && most - least <= 1, "shares are uneven", size, static_cast<int>(count));
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const bool race = argc > 1 && std::strcmp(argv[1], "race") == 0;
    if (race) {
        Team team(4);
        phases(team, 50, false, 0);
        return 0;
    }
    const double seconds = argc > 2 ? std::atof(argv[2]) : 3;
    shares();
    for (int size : {0, -1}) {
        bool refused = false;
        try {
            Team team(size);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        check(refused, "a team of none", size, 0);
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    int teams = 0;
    do {
        for (int size = 1; size <= 8; ++size) {
            {
                Team idle(size);
            }  // made and dismissed without a run
            Team team(size);
            phases(team, 25, true, 0);
            phases(team, 4, true, 5);
            counts(team, 60);
            std::this_thread::sleep_for(std::chrono::microseconds(200));  // asleep between two runs
            phases(team, 2, true, 0);
            teams += 2;
        }
        // Used from one thread after another, as an executor is.
        Team team(3);
        for (int turn = 0; turn < 3; ++turn) std::thread([&] { phases(team, 3, true, 0); }).join();
    } while (std::chrono::steady_clock::now() < end);
    std::printf("%d teams, %d failures\n", teams, failures);
    return failures ? 1 : 0;
}
