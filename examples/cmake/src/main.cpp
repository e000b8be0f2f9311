// reckon [LINE...]: answers each line; without any, those of standard input.
#include <iostream>

#include "reckon/error.hpp"
#include "reckon/session.hpp"

namespace {

bool answered(reckon::Session& session, const std::string& line) {
  try {
    std::cout << session.answer(line) << "\n";
    return true;
  } catch (const reckon::Error& error) {
    std::cerr << reckon::point_at(line, error) << "\n";
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  reckon::Session session;
  bool good = true;
  for (int i = 1; i < argc; ++i) good = answered(session, argv[i]) && good;
  for (std::string line; argc == 1 && std::getline(std::cin, line);) good = answered(session, line) && good;
  return good ? 0 : 1;
}
