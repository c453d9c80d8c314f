// src/ptx: what the parser makes of PTX of every kind that a compiler writes, of text that is none, and of damaged PTX.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>

#include "ptx/module.h"

using namespace vgpu::ptx;

namespace {

int checks = 0;

void check(bool good, const char* what, int line) {
    ++checks;
    if (good) return;
    std::fprintf(stderr, "parse_test.cpp:%d: %s\n", line, what);
    std::exit(1);
}
#define CHECK(condition) check(condition, #condition, __LINE__)

const std::string kHead = ".version 8.7\n.target sm_90a, debug\n.address_size 64\n";

constexpr const char* kModule = R"(//
// A comment before everything
.version 9.0
.target sm_90a
.address_size 64
.extern .func  (.param .b32 func_retval0) vprintf
(
	.param .b64 vprintf_param_0,
	.param .b64 vprintf_param_1
)
;
.extern .func __assertfail (.param .b64 a) .noreturn;
.func (.param .align 8 .b8 func_retval0[16]) helper(
	.param .align 8 .b8 helper_param_0[16],
	.reg .u32 %n
)
;
.func _ZN1CC1Ei (.param .b64 p);
.const .align 4 .b8 table[24] = {0, 0, 192, 63, 0, 0, 0, 192};
.global .align 8 .u64 names[3] = {generic(text)+8, 5, table-4};
.global .align 1 .b8 text[4] = {97, 0x62, -1};
.global .align 1 .u8 packed[10] = {3, 0XFF(generic(text)+4), 0xFF00(generic(text)+4), 0xFF0000(generic(text)+4),
    0xFF000000(generic(text)+4), 0xFF00000000(generic(text)+4), 0xFF0000000000(generic(text)+4),
    0xFF000000000000(generic(text)+4), 0xFF00000000000000(generic(text)+4), 7};
.global .f32 grid[2][3] = {{0f3F800000, 2.5}, {-1}};
.global .v2 .f64 pairs[] = {{0d3FF0000000000000, 2.0}, {3.0, 4.0}};
.global .attribute(.managed) .align 4 .u32 managed = -7;
.extern .shared .align 16 .b8 dynamic[];
.extern .global .b32 later[2];
.global .b32 later[2] = {1, 2};
.visible .entry _Z6kernelPf(
	.param .u64 .ptr .global .align 32 _Z6kernelPf_param_0,
	.param .align 16 .b8 _Z6kernelPf_param_1[32]
)
.maxntid 256, 2
.reqntid 64
.minnctapersm 2
.maxnreg 128
.explicitcluster
.reqnctapercluster 2, 1, 1
{
	.local .align 16 .b8 	__local_depot0[8];
	.reg .pred 	%p<3>;
	.reg .b32 	%r<4>, %single;
	.reg .b64 	%rd<3>;
	.shared .align 16 .b8 tile[4][8];
	.loc	1 10 0
	ld.param.u64 	%rd1, [_Z6kernelPf_param_0];
	.loc	1 11 5
	.loc	2 131 49, function_name $L__info_string0, inlined_at 1 11 5
	.loc	2 7 3, function_name $L__info_string1 + 16, inlined_at 2 131 49
	mov.u32 	%r1, %tid.x;
	.loc	2 0 1
	@%p1 bra 	$L__BB0_2;
	.loc	9 3 1
	@!%p1 bra.uni 	$L__BB0_2;
	{ // callseq 0, 0
	.reg .b32 temp_param_reg;
	.param .b64 param0;
	st.param.b64 	[param0+0], %rd1;
	call.uni (retval0),
	vprintf,
	(
	param0,
	param1
	);
	} // callseq 0
	{ .reg .b32 temp_param_reg; .param .b64 param0;
	prototype_1 : .callprototype (.param .b32 _) _ (.param .b32 _, .param .b32 _);
	call (retval0), %rd1, (param0, 5), prototype_1; }
	call _ZN1CC1Ei, (param0);
	call nothing;
	.pragma "nounroll";
	{ .reg .pred p; .reg .b32 r<2>; setp.ne.u32 p|_, %r1, 0; @p bra L; mov.b32 r1, 5; L: st.b32 [%rd1], r1; }
	{ .reg .pred p; .reg .b32 r<2>; @!p bra L; mov.b32 r1, 5;
	  { .reg .b32 r1; mov.b32 r1, r0; } L: st.b32 [%rd1], r1; };
	ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%r1, %r2, _, %r3}, [%rd1+-8];
	ld.shared::cta.u32 %r1, [tile + 4];
	st.shared.u32 [4096], 0f3F800000;
	fma.rn.f64 %rd2, 1.0, -0d3FF0000000000000, -2.5e-1;
	mov.b32 %r1, 0xFFFFFFFFU; mov.b32 %r1, -0x10; mov.b32 %r1, 017; mov.b32 %r1, 0b101;
	mov.u64 %rd1, tile+8;
	shfl.sync.bfly.b32 	%r2|%p1, %r1, 16, 31, -1;
	selp.b32 %r1, 1, 0, !%p1;
	vadd.u32.u32.u32 %r1, %r2.b0, %r3.h1;
	cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], %r2, [%r3];
$L__BB0_2:
$L_brx_0: .branchtargets
	$L__BB0_2,
	$L__BB0_3;
	brx.idx %r1, $L_brx_0;
$L__BB0_3: ret;
end:
}
.func (.param .align 8 .b8 func_retval0[16]) helper(
	.param .align 8 .b8 helper_param_0[16],
	.reg .u32 %n
)
{
	/* over
	   two lines */ ret;
}
.func _ZN1CC2Ei (.param .b64 p) { ret; }
.alias _ZN1CC1Ei, _ZN1CC2Ei;
	.file	1 "/src/a.cu"
	.file	2 "/cuda-13/include/b \"c\".h", 1700000000, 12345
	.section	.debug_str
	{
$L__info_string0:
.b8 95,90,0
	}
)";

const Function& function(const Module& m, const std::string& name) {
    for (const Function& f : m.functions)
        if (f.name == name) return f;
    std::fprintf(stderr, "no function %s\n", name.c_str());
    std::exit(1);
}

const Variable& variable(const std::vector<Variable>& list, const std::string& name) {
    for (const Variable& v : list)
        if (v.name == name) return v;
    std::fprintf(stderr, "no variable %s\n", name.c_str());
    std::exit(1);
}

// The first statement of that text.
const Statement& statement(const Function& f, const std::string& text) {
    for (const Statement& s : f.code)
        if (s.text() == text) return s;
    std::fprintf(stderr, "no statement %s among\n", text.c_str());
    for (const Statement& s : f.code) std::fprintf(stderr, "    %s\n", s.text().c_str());
    std::exit(1);
}

void test_module() {
    auto m = parse(kModule);
    CHECK(m->version_major == 9 && m->version_minor == 0 && m->target == 90 && m->target_suffix == "a");
    CHECK(m->files.size() == 3 && m->files[1] == "/src/a.cu" && m->files[2] == "/cuda-13/include/b \"c\".h");
    CHECK(m->functions.size() == 5);  // vprintf, __assertfail, helper, the kernel, the constructor

    const Function& printf = function(*m, "vprintf");
    CHECK(!printf.defined && !printf.entry && printf.parameters.size() == 2 && printf.results.size() == 1);
    const Function& helper = function(*m, "helper");
    CHECK(helper.defined && helper.code.size() == 1 && helper.results[0].bytes() == 16 && helper.results[0].alignment() == 8);
    CHECK(helper.parameters[0].space == Space::param && helper.parameters[1].space == Space::reg);

    const Function& f = function(*m, "_Z6kernelPf");
    CHECK(f.entry && f.defined && f.parameters.size() == 2 && f.parameters[0].alignment() == 8 && f.parameters[1].bytes() == 32);
    CHECK(f.max_threads[0] == 256 && f.max_threads[1] == 2 && f.max_threads[2] == 1);
    CHECK(f.required_threads[0] == 64 && f.required_threads[1] == 1 && f.min_blocks == 2 && f.max_registers == 128);
    CHECK(variable(f.registers, "%p2").type.name == "pred" && variable(f.registers, "%r3").type.bytes == 4);
    CHECK(variable(f.registers, "%single").type.bytes == 4 && variable(f.registers, "%rd2").type.bytes == 8);
    CHECK(variable(f.variables, "__local_depot0").space == Space::local);
    CHECK(variable(f.variables, "tile").space == Space::shared && variable(f.variables, "tile").bytes() == 32);
}

void test_initialisers() {
    auto m = parse(kModule);
    auto value = [&](const char* name, size_t offset, auto v) {
        const Variable& x = variable(m->variables, name);
        if (offset + sizeof v > x.initial.size()) return false;
        return std::memcmp(x.initial.data() + offset, &v, sizeof v) == 0;
    };
    CHECK(variable(m->variables, "table").space == Space::constant && variable(m->variables, "table").initial.size() == 8);
    CHECK(value("table", 0, 1.5f) && value("table", 4, -2.0f));
    CHECK(value("text", 1, 'b') && value("text", 2, '\xff'));
    CHECK(value("names", 8, uint64_t{5}));
    const auto& names = variable(m->variables, "names").addresses;
    CHECK(names.size() == 2 && names[0].symbol == "text" && names[0].generic && names[0].addend == 8 && names[0].offset == 0);
    CHECK(names[1].symbol == "table" && !names[1].generic && names[1].addend == -4 && names[1].offset == 16);
    const Variable& packed = variable(m->variables, "packed");
    CHECK(packed.addresses.size() == 1 && packed.addresses[0].offset == 1 && packed.addresses[0].addend == 4);
    CHECK(value("packed", 0, '\3') && value("packed", 9, '\7'));
    CHECK(value("grid", 0, 1.0f) && value("grid", 4, 2.5f) && value("grid", 8, 0.0f) && value("grid", 12, -1.0f));
    CHECK(variable(m->variables, "pairs").count == 2 && variable(m->variables, "pairs").bytes() == 32);
    CHECK(value("pairs", 0, 1.0) && value("pairs", 24, 4.0));
    CHECK(value("managed", 0, -7));
    CHECK(variable(m->variables, "dynamic").count == 0 && variable(m->variables, "dynamic").is_extern);
    CHECK(!variable(m->variables, "later").is_extern && value("later", 4, 2));
}

void test_statements() {
    using Kind = Operand::Kind;
    auto m = parse(kModule);
    const Function& f = function(*m, "_Z6kernelPf");
    const Statement& wide = statement(f, "ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%r1, %r2, _, %r3}, [%rd1+-8];");
    CHECK(wide.opcode == "ld" && wide.modifiers.size() == 6 && wide.has("L1::no_allocate") && wide.has("v4"));
    CHECK(wide.operands[0].kind == Kind::vector && wide.operands[0].parts[2].kind == Kind::sink);
    CHECK(wide.operands[1].kind == Kind::address && wide.operands[1].name == "%rd1");
    CHECK(static_cast<int64_t>(wide.operands[1].value) == -8);
    CHECK(statement(f, "ld.shared::cta.u32 %r1, [tile+4];").has("shared::cta"));
    CHECK(statement(f, "st.shared.u32 [4096], 0f3F800000;").operands[0].name.empty());
    CHECK(statement(f, "fma.rn.f64 %rd2, 0d3FF0000000000000, 0dBFF0000000000000, 0dBFD0000000000000;").operands.size() == 4);
    CHECK(statement(f, "mov.b32 %r1, 4294967295;").operands[1].value == 0xffffffffu);
    CHECK(statement(f, "mov.b32 %r1, -16;").operands[1].value == uint64_t{0} - 16);
    statement(f, "mov.b32 %r1, 15;");
    statement(f, "mov.b32 %r1, 5;");
    CHECK(statement(f, "mov.u64 %rd1, tile+8;").operands[1].value == 8);
    CHECK(statement(f, "mov.u32 %r1, %tid.x;").operands[1].name == "%tid.x");
    CHECK(statement(f, "shfl.sync.bfly.b32 %r2|%p1, %r1, 16, 31, -1;").operands[0].kind == Kind::pair);
    CHECK(statement(f, "selp.b32 %r1, 1, 0, !%p1;").operands[3].negated);
    CHECK(statement(f, "@%p1 bra $L__BB0_2;").guard == "%p1");
    CHECK(statement(f, "@!%p1 bra.uni $L__BB0_2;").guard_negated);
    const Statement& call = statement(f, "call.uni (retval0), vprintf, (param0, param1);");
    CHECK(call.operands.size() == 3 && call.operands[0].kind == Kind::list && call.operands[1].kind == Kind::name);
    CHECK(call.operands[2].parts.size() == 2);
    statement(f, "call _ZN1CC2Ei, (param0);");  // through the alias
    statement(f, "call nothing;");

    CHECK(f.targets.size() == 1 && f.targets[0].name == "$L_brx_0" && f.targets[0].labels.size() == 2);
    std::map<std::string, uint32_t> labels;
    for (const auto& l : f.labels) labels[l.name] = l.at;
    CHECK(labels.size() == f.labels.size());
    CHECK(f.code[labels.at("$L__BB0_3")].text() == "ret;" && f.code[labels.at("$L__BB0_2")].opcode == "brx");
    CHECK(labels.at("end") == f.code.size());
}

void test_scopes() {
    auto m = parse(kModule);
    const Function& f = function(*m, "_Z6kernelPf");
    std::map<std::string, int> names;
    for (const Variable& v : f.registers) CHECK(++names[v.name] == 1);
    for (const Variable& v : f.variables) CHECK(++names[v.name] == 1);
    for (const auto& l : f.labels) CHECK(++names[l.name] == 1);
    // The first scope keeps its names, the second and the one within it have their own.
    statement(f, "setp.ne.u32 p|_, %r1, 0;");
    statement(f, "@p bra L;");
    statement(f, "st.b32 [%rd1], r1;");
    statement(f, "call (retval0), %rd1, (param0$2, 5), prototype_1;");
    statement(f, "@!p$4 bra L$4;");
    statement(f, "mov.b32 r1$4, 5;");
    statement(f, "mov.b32 r1$5, r0$4;");
    statement(f, "st.b32 [%rd1], r1$4;");

    // A name of the function or the module that stands after the scope comes first all the same.
    auto n = parse(kHead +
                   ".global .u32 g;\n.entry k() { { .reg .b32 x; .reg .b32 g; L: mov.b32 x, g; bra L; }\n"
                   ".reg .b32 x; L: ld.u32 x, [g]; bra L; }");
    const Function& k = n->functions[0];
    const char* expected[] = {"mov.b32 x$1, g$1;", "bra L$1;", "ld.u32 x, [g];", "bra L;"};
    for (size_t i = 0; i < 4; ++i) CHECK(k.code[i].text() == expected[i]);
    CHECK(k.labels[0].name == "L$1" && k.labels[0].at == 0 && k.labels[1].name == "L" && k.labels[1].at == 2);
    // A part of a renamed vector; a use before the declaration is of the outer name.
    auto v = parse(kHead + ".entry k() { .reg .v4 .f32 v; { mov.f32 a, v.x; .reg .v4 .f32 v; mov.f32 a, v.y; } }");
    CHECK(v->functions[0].code[0].text() == "mov.f32 a, v.x;" && v->functions[0].code[1].text() == "mov.f32 a, v$1.y;");
    CHECK(v->functions[0].registers[0].vector == 4);
}

void test_locations() {
    auto m = parse(kModule);
    const Function& f = function(*m, "_Z6kernelPf");
    auto at = [](const Statement& s, int file, int line) { return s.where.file == file && s.where.line == line; };
    CHECK(at(f.code[0], 1, 10));
    CHECK(at(f.code[1], 1, 11));                               // inlined twice over, from a header of the toolkit
    CHECK(at(f.code[2], -1, 0) && f.code[2].opcode == "bra");  // line 0: of no line in particular
    CHECK(at(f.code[3], -1, 0));                               // a file without .file
    CHECK(function(*m, "helper").code[0].where.file == -1);    // no .loc
    // An author's own header: its line, though it is inlined, and though a header of the toolkit is inlined there in turn.
    auto own = parse(kHead +
                     ".entry k() { .reg .b32 x;\n.loc 1 10 0\nmov.b32 x, 0;\n.loc 1 11 5\n"
                     ".loc 3 40 1, function_name F, inlined_at 1 11 5\nmov.b32 x, 1;\n"
                     ".loc 2 7 3, function_name F, inlined_at 3 40 1\nmov.b32 x, 2; }\n"
                     ".file 1 \"a.cu\"\n.file 2 \"/cuda/include/b.h\"\n.file 3 \"include/mine.h\"\n");
    const Function& o = own->functions[0];
    CHECK(at(o.code[0], 1, 10) && at(o.code[1], 3, 40) && at(o.code[2], 3, 40));
    const std::string text = kModule;
    int line = 1;
    for (size_t i = 0; i < text.find("mov.u32 \t%r1, %tid.x"); ++i) line += text[i] == '\n';
    CHECK(f.code[1].line == line);
}

bool equal(const Operand& a, const Operand& b) {
    if (a.kind != b.kind || a.name != b.name || a.value != b.value || a.negated != b.negated) return false;
    if (a.parts.size() != b.parts.size()) return false;
    for (size_t i = 0; i < a.parts.size(); ++i)
        if (!equal(a.parts[i], b.parts[i])) return false;
    return true;
}

void test_round_trip() {
    auto m = parse(kModule);
    for (const Function& f : m->functions)
        for (const Statement& s : f.code) {
            auto again = parse(kHead + ".entry k() { " + s.text() + " }");
            const Statement& t = again->functions[0].code.at(0);
            CHECK(t.opcode == s.opcode && t.modifiers == s.modifiers && t.guard == s.guard);
            CHECK(t.guard_negated == s.guard_negated && t.operands.size() == s.operands.size());
            for (size_t i = 0; i < s.operands.size(); ++i) CHECK(equal(s.operands[i], t.operands[i]));
        }
}

std::string repeat(const char* part, size_t n) {
    std::string out;
    while (n--) out += part;
    return out;
}

// Says what is wrong with it; empty: nothing.
std::string complaint(const std::string& text) {
    try {
        parse(text);
    } catch (const SyntaxError& error) {
        return error.what();
    }
    return "";
}

void test_errors() {
    auto body = [](const std::string& text) { return complaint(kHead + ".entry k() {\n" + text + "\n}\n"); };
    auto module = [](const std::string& text) { return complaint(kHead + text); };
    CHECK(body("ret;").empty() && module("").empty());
    CHECK(body("add.u32 %r1 %r2;") == "PTX line 5: expected ',' or ';' in an instruction 'add', found '%r2'");
    const std::string broken_bodies[] = {
        "ret",
        "add.u32 %r1, ;",
        "ld.u32 %r1, [%rd1;",
        "tex.2d.v4.f32.s32 {a, b, c, d}, [t, {x, y}];",
        "mov.b32 {};",
        "mov.b32 {a, b;",
        "mov.b32 %, 1;",
        "mov.b32 a, 0f3F80000;",
        "mov.b32 a, 0f3F8000000;",
        "mov.b32 a, 0x;",
        "mov.b32 a, 0x-1;",
        "mov.b32 a, 09;",
        "mov.b32 a, 1e;",
        "mov.b32 a, 12ab;",
        "mov.b32 a, 18446744073709551616;",
        "mov.b32 a, !5;",
        "mov.b32 %r1, %r2+4;",
        "@%p1",
        "@ 5 ret;",
        "{ ret;",
        "} ret;",
        "/* ret;",
        ".pragma \"a",
        ".reg .b32 a; .reg .b32 a;",
        ".reg .b32 %r<4>; .reg .b32 %r2;",
        "{ .reg .b32 a; a: ret; }",
        "L: ret; L: ret;",
        ".reg .b33 a;",
        ".reg .b32 a<99999999999>;",
        ".reg .b32 a<1048577>;",
        ".shared .pred a;",
        ".shared .b8 a[1099511627777];",
        ".shared .b8 a[1048576][1048576][1048576][1048576];",
        ".shared .b8 a[][1099511627776][1099511627776];",
        ".shared .b8 a[4][];",
        ".shared .align 3 .b8 a[4];",
        ".shared .b8 a[4] = {1};",
        ".unknown 5;",
        ".loc 1 2;",
        ".loc 1 2 3, inlined 4 5 6;",
        "\xff\x80;",
        std::string("\0;", 2),
        repeat("{", 100000),
        "mov.b32 a, " + repeat("{", 100000),
        "mov.b32 a, " + repeat("(", 100000),
    };
    for (const std::string& text : broken_bodies)
        if (!body(text).starts_with("PTX line ")) check(false, text.substr(0, 60).c_str(), __LINE__);
    const std::string broken_modules[] = {
        ".version 8.0\n.version",
        ".address_size 32",
        ".unknown",
        "ret;",
        ".entry",
        ".entry k(",
        ".entry k() .maxntid {}",
        ".entry k() .unknown {}",
        ".entry k() {} .entry k() {}",
        ".entry k() {} .global .b8 k;",
        ".global .b8 a; .global .b8 a;",
        ".global .b8 a[2] = {1, 2, 3};",
        ".global .b8 a[2] = {{1}, 2};",
        ".global .b8 a[2] = 5;",
        ".global .b8 a = \"a\";",
        ".global .b32 a = b;",
        ".global .b8 a[2] = {0xff(b), 0xff00(b)};",
        ".global .b8 a[8] = {0xff(b), 0xff0000(b)};",
        ".global .f16 a = 1.0;",
        ".global .u32 a = 0d3FF0000000000000;",
        ".global .b8 a[4][1099511] = {{1}, {2}, {3}}; .global .b8 b[2][1099511627776] = {{1}, {2}};",
        ".global .b8 a[2][2] = {" + repeat("{", 100000),
        ".file 99999999 \"a\"",
        ".file 1 \"a",
        ".section .debug { \" }",
        ".section .debug {{ }",
        ".alias a, b;",
        ".alias a, b; .alias b, a;",
        ".func a() {} .func b() {} .alias a, b;",
        ".func a(.param .b8 x, .param .b8 x) {}",
    };
    for (const std::string& text : broken_modules)
        if (!module(text).starts_with("PTX line ")) check(false, text.substr(0, 60).c_str(), __LINE__);
    for (const char* text : {"", "\n", "hello", ".target sm_90\n", ".version 8.0\n", ".version 8\n",
                             "\x7f"
                             "ELF"})
        CHECK(complaint(text).starts_with("PTX line "));
    // What is enormous but harmless
    CHECK(body(".shared .b8 a[1099511627776]; .reg .b32 a1<65536>;").empty());
    CHECK(module(repeat(";", 1000000)).empty());
    CHECK(body(repeat("{", 64) + repeat("}", 64)).empty());
}

// Damaged PTX gives a module or a SyntaxError; the sanitizers watch.
void test_mutations(int rounds) {
    std::mt19937 random(1);
    auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
    const std::string whole = kModule;
    const char* const pieces[] = {"{",  "}", "(",      ")",    "[",   "]",    ";",   ",",      ":",     "@",       "!",
                                  ".",  "-", "+",      "|",    "_",   "\"",   "<9>", "/*",     "99999", "0f",      "0x",
                                  "%r", "$", ".align", ".reg", " = ", "::b8", "//",  "ret;\n", ".v4 ",  "generic("};
    int good = 0, bad = 0;
    for (int i = 0; i < rounds; ++i) {
        std::string text = whole;
        for (size_t n = 1 + below(3); n > 0; --n) {
            size_t at = below(text.size()), length = below(below(4) ? 8 : 200);
            switch (below(6)) {
                case 0:
                    text.erase(at, length);
                    break;
                case 1:
                    text.insert(at, pieces[below(std::size(pieces))]);
                    break;
                case 2:
                    text[at] = static_cast<char>(below(256));
                    break;
                case 3:
                    text.insert(at, whole, below(whole.size()), length);
                    break;
                case 4:
                    text.replace(at, length, pieces[below(std::size(pieces))]);
                    break;
                case 5:
                    if (!below(4)) text.resize(at);
                    break;
            }
            if (text.empty()) text = ";";
        }
        try {
            auto m = parse(text);
            for (const Function& f : m->functions)
                for (const Statement& s : f.code) checks += !s.text().empty();
            ++good;
        } catch (const SyntaxError& error) {
            CHECK(std::string(error.what()).starts_with("PTX line "));
            ++bad;
        }
    }
    CHECK(good > rounds / 50 && bad > rounds / 50);
}

}  // namespace

int main(int count, char** arguments) {
    test_module();
    test_initialisers();
    test_statements();
    test_scopes();
    test_locations();
    test_round_trip();
    test_errors();
    test_mutations(count > 1 ? std::atoi(arguments[1]) : 10000);
    std::printf("%d checks\n", checks);
}
