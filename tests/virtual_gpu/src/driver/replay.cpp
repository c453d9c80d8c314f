// Running an instantiated graph: its nodes in any order that the edges allow, drawn anew at each launch. Every branch has a
// stream number of its own, so that two launches are ordered where edges order them and nowhere else.
#include <algorithm>

#include "driver/graph.h"

namespace vgpu::driver {

std::vector<std::shared_ptr<Node>> topological(const Graph& graph) {
    std::unordered_map<const Node*, size_t> missing;
    std::unordered_map<const Node*, std::vector<std::shared_ptr<Node>>> dependents;
    std::vector<std::shared_ptr<Node>> ready, sorted;
    for (const auto& node : graph.nodes) {
        missing[node.get()] = node->dependencies.size();
        for (const Edge& edge : node->dependencies) dependents[edge.from.get()].push_back(node);
        if (node->dependencies.empty()) ready.push_back(node);
    }
    while (!ready.empty()) {
        std::swap(ready[state().random() % ready.size()], ready.back());
        const auto node = ready.back();
        ready.pop_back();
        sorted.push_back(node);
        for (const auto& dependent : dependents[node.get()])
            if (--missing[dependent.get()] == 0) ready.push_back(dependent);
    }
    if (sorted.size() != graph.nodes.size()) sorted.clear();
    return sorted;
}

namespace {

// Kernel nodes that overlap: each but the first depends on the one before it, programmatically, and on nothing else.
struct Chains {
    std::unordered_map<const Node*, std::shared_ptr<Node>> next;
    std::set<const Node*> inner;

    explicit Chains(const std::vector<std::shared_ptr<Node>>& sorted) {
        for (const auto& node : sorted) {
            if (node->dependencies.size() != 1 || !node->dependencies[0].programmatic) continue;
            const Node* from = node->dependencies[0].from.get();
            if (next.emplace(from, node).second) inner.insert(node.get());
        }
    }
};

}  // namespace

void replay(const std::shared_ptr<Context>& context, Exec& exec, Stream& stream) {
    State& s = state();
    begin(*context, stream);
    const auto sorted = topological(*exec.graph);
    const Chains chains(sorted);
    Clock start = stream.clock;
    join(start, s.known);
    join(start, exec.over);  // a graph never overlaps itself
    Clock end = start;
    std::unordered_map<const Node*, Clock> over;
    std::unordered_map<const Node*, uint32_t> number_of;
    std::unordered_map<uint32_t, const Node*> tail;
    size_t numbers = 0;
    try {
        for (const auto& head : sorted) {
            if (chains.inner.contains(head.get())) continue;
            Clock after = start;
            for (const Edge& edge : head->dependencies) join(after, over[edge.from.get()]);
            if (!std::holds_alternative<KernelWork>(head->work)) {
                if (const auto* copy = std::get_if<Copy>(&head->work)) run(*context, *copy);
                if (const auto* set = std::get_if<Set>(&head->work)) run(*set);
                if (const auto* host = std::get_if<HostWork>(&head->work)) host->call(host->data);
                over[head.get()] = after;
                continue;
            }
            // A branch goes on where its last launch is this one's dependency.
            std::optional<uint32_t> number;
            for (const Edge& edge : head->dependencies) {
                const auto at = number_of.find(edge.from.get());
                if (at != number_of.end() && tail[at->second] == edge.from.get()) number = at->second;
            }
            if (!number) {
                if (numbers == exec.numbers.size()) exec.numbers.push_back(take_number());
                number = exec.numbers[numbers++];
            }
            const uint64_t before = s.issued[*number];
            std::vector<Launch> launches;
            for (std::shared_ptr<Node> node = head; node;) {
                Launch launch = std::get<KernelWork>(node->work).launch;
                launch.stream = *number;
                launch.after = after;
                raise(launch.after, *number, 0);
                launch.after[*number] = before;
                launch.programmatic = node != head;
                launches.push_back(std::move(launch));
                Clock done = after;
                raise(done, *number, ++s.issued[*number]);
                join(end, done);
                over[node.get()] = std::move(done);
                number_of[node.get()] = *number;
                tail[*number] = node.get();
                const auto next = chains.next.find(node.get());
                node = next == chains.next.end() ? nullptr : next->second;
            }
            run(*context, launches);
        }
    } catch (...) {
        // Which launches the card has counted is uncertain: these numbers are done with.
        exec.numbers.clear();
        throw;
    }
    exec.over = end;
    join(stream.clock, end);
}

}  // namespace vgpu::driver
