#include "reckon/lexer.hpp"

#include <cctype>
#include <cstdlib>
#include <map>

#include "reckon/error.hpp"

namespace reckon {
namespace {

const std::map<char, Kind> signs = {
    {'+', Kind::plus}, {'-', Kind::minus}, {'*', Kind::star},  {'/', Kind::slash},  {'^', Kind::caret},
    {'(', Kind::open}, {')', Kind::close}, {',', Kind::comma}, {'=', Kind::equals},
};

bool begins_name(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool continues_name(char c) { return begins_name(c) || std::isdigit(static_cast<unsigned char>(c)); }

Token number_at(const std::string& text, std::size_t at) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str() + at, &end);
  return {Kind::number, text.substr(at, static_cast<std::size_t>(end - text.c_str()) - at), value, at};
}

Token name_at(const std::string& text, std::size_t at) {
  std::size_t end = at;
  while (end < text.size() && continues_name(text[end])) ++end;
  return {Kind::name, text.substr(at, end - at), 0, at};
}

Token token_at(const std::string& text, std::size_t at) {
  const char c = text[at];
  if (std::isdigit(static_cast<unsigned char>(c)) || c == '.') return number_at(text, at);
  if (begins_name(c)) return name_at(text, at);
  const auto sign = signs.find(c);
  if (sign == signs.end()) throw Error(at, std::string("cannot read '") + c + "'");
  return {sign->second, std::string(1, c), 0, at};
}

}  // namespace

std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  std::size_t at = 0;
  while (at < text.size()) {
    if (std::isspace(static_cast<unsigned char>(text[at]))) {
      ++at;
      continue;
    }
    tokens.push_back(token_at(text, at));
    if (tokens.back().text.empty()) throw Error(at, "a lone '.'");
    at += tokens.back().text.size();
  }
  tokens.push_back({Kind::end, "", 0, text.size()});
  return tokens;
}

}  // namespace reckon
