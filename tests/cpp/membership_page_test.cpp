// docs/membership.md draws the tables that the machines are checked against.
//
// With PCCL_WRITE_DOCS set the page is written instead of compared.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "membership/coordinator.h"
#include "membership/member.h"

namespace pccl::membership {
namespace {

std::string_view why(const MemberTransition& transition) { return transition.event; }
std::string_view why(const CoordinatorTransition& transition) { return transition.why; }

// One machine.
template <typename Transitions>
void draw(std::ostringstream& page, std::string_view title, const Transitions& transitions) {
  page << "## " << title << "\n\n```mermaid\nstateDiagram-v2\n";
  for (const auto& transition : transitions) {
    page << "    " << state_name(transition.from) << " --> " << state_name(transition.to) << " : "
         << why(transition) << "\n";
  }
  page << "```\n";
  page << "\n";
}

std::string page_of_the_tables() {
  std::ostringstream page;
  page << "# Who is in: the two machines\n\n"
          "Drawn from the transition tables in `csrc/membership/`; a test compares this page with "
          "them, and the simulator\nchecks that the machines make these transitions and no others. "
          "The protocol: [decision 0005](decisions/0005-membership.md).\n\n";
  draw(page, "Member", member_transitions());
  page << "| in | on | to | does |\n|---|---|---|---|\n";
  for (const MemberTransition& transition : member_transitions()) {
    page << "| " << state_name(transition.from) << " | " << transition.event << " | "
         << state_name(transition.to) << " | " << transition.action << " |\n";
  }
  page << "\n";
  draw(page, "Coordinator", coordinator_transitions());
  std::string text = page.str();
  text.pop_back();
  return text;
}

TEST_CASE("docs/membership.md is what the tables say") {
  const std::filesystem::path path =
      std::filesystem::path(__FILE__).parent_path().parent_path().parent_path() / "docs" /
      "membership.md";
  const std::string expected = page_of_the_tables();
  if (std::getenv("PCCL_WRITE_DOCS") != nullptr) std::ofstream(path) << expected;
  std::ifstream file(path);
  std::ostringstream found;
  found << file.rdbuf();
  CHECK(found.str() == expected);
}

}  // namespace
}  // namespace pccl::membership
