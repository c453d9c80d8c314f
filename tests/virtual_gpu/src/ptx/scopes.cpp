#include "ptx/scopes.h"

#include <string>
#include <unordered_map>
#include <unordered_set>

#include "ptx/lexer.h"

namespace vgpu::ptx {

namespace {

struct Renamed {
    std::string to;
    uint32_t from;
    int line;
};
using Renames = std::unordered_map<std::string, Renamed>;

void rename(std::string& name, size_t statement, const Renames& renames) {
    if (name.empty()) return;
    size_t dot = name.find('.');  // "v.x" is a part of v
    auto found = renames.find(dot == std::string::npos ? name : name.substr(0, dot));
    if (found == renames.end() || statement < found->second.from) return;
    if (dot == std::string::npos)
        name = found->second.to;
    else
        name = found->second.to + name.substr(dot);
}

void rename(std::vector<Operand>& operands, size_t statement, const Renames& renames) {
    for (Operand& operand : operands) {
        rename(operand.name, statement, renames);
        rename(operand.parts, statement, renames);
    }
}

}  // namespace

void Scopes::open(const Function& f) {
    scopes_.push_back({mark(f), {}});
    open_.push_back(static_cast<uint32_t>(scopes_.size()));
}

void Scopes::close(const Function& f) {
    scopes_[open_.back() - 1].end = mark(f);
    open_.pop_back();
}

void Scopes::resolve(Function& f, const std::function<bool(std::string_view)>& in_module) const {
    struct Name {
        std::string* name;
        const Declared* declared;
        bool label;
    };
    // The function's own names stay as they are.
    std::unordered_set<std::string> taken;
    taken.reserve(f.registers.size() + f.variables.size() + f.labels.size() + 16);
    std::vector<std::vector<Name>> nested(scopes_.size());
    auto own = [&](const std::string& name, int line) {
        if (!taken.insert(name).second) Lexer::fail(line, "'" + name + "' is declared twice");
    };
    for (const Variable& v : f.parameters) own(v.name, static_cast<int>(f.line));
    for (const Variable& v : f.results) own(v.name, static_cast<int>(f.line));
    auto sort = [&](auto& list, const std::vector<Declared>& declared, bool label) {
        for (size_t i = 0; i < list.size(); ++i) {
            if (declared[i].scope == kFunction)
                own(list[i].name, declared[i].line);
            else
                nested[declared[i].scope - 1].push_back({&list[i].name, &declared[i], label});
        }
    };
    sort(f.registers, registers_, false);
    sort(f.variables, variables_, false);
    sort(f.labels, labels_, true);
    sort(f.targets, targets_, true);

    // New names are chosen from the outermost scope inwards, so that a scope keeps its name where it is the first to have it.
    std::vector<Renames> renames(scopes_.size());
    for (size_t s = 0; s < scopes_.size(); ++s) {
        std::unordered_set<std::string> here;
        for (const Name& n : nested[s]) {
            if (!here.insert(*n.name).second) Lexer::fail(n.declared->line, "'" + *n.name + "' is declared twice");
            std::string unique = *n.name;
            if (taken.contains(unique) || in_module(unique)) {
                unique += "$" + std::to_string(s + 1);
                while (taken.contains(unique) || in_module(unique)) unique += '_';
            }
            taken.insert(unique);
            if (unique == *n.name) continue;
            uint32_t from = n.label ? 0 : n.declared->from;
            renames[s].emplace(std::move(*n.name), Renamed{unique, from, n.declared->line});
            *n.name = std::move(unique);
        }
    }
    // They are put in from the innermost scope outwards: what is left of a name in a scope is then the scope's own.
    for (size_t s = scopes_.size(); s-- > 0;) {
        if (renames[s].empty()) continue;
        const Scope& scope = scopes_[s];
        for (size_t i = scope.begin.code; i < scope.end.code; ++i) {
            rename(f.code[i].guard, i, renames[s]);
            rename(f.code[i].operands, i, renames[s]);
        }
        for (size_t i = scope.begin.targets; i < scope.end.targets; ++i)
            for (std::string& label : f.targets[i].labels) rename(label, scope.end.code, renames[s]);
        for (size_t i = scope.begin.variables; i < scope.end.variables; ++i)
            for (Variable::Address& a : f.variables[i].addresses) rename(a.symbol, scope.end.code, renames[s]);
    }
}

}  // namespace vgpu::ptx
