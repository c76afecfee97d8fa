// Whose keys may take part in which run, and the tokens that admit new ones: a SQLite file beside
// the coordinator's database.
//
// `pccl invite` and `pccl revoke` write to it while a coordinator reads it. Each call is one
// transaction, on disk when it returns. It holds no secret: of a token, what verifies it; of the
// coordinator's own token, which its key can find again, the same. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "membership/database.h"
#include "transport/handshake.h"
#include "transport/identity.h"

namespace pccl::membership {

using transport::Fingerprint;
using transport::Token;
using transport::TokenId;

// Of one run. A token without a limit admits ever more; then those that came first are forgotten,
// and need their token again when they call again.
inline constexpr uint64_t kKeysMax = 1 << 16;

class KeyBook {
 public:
  // `database`: path of the coordinator's. Opens the file, or makes it, readable for its owner
  // only. Throws DatabaseError, as all below.
  explicit KeyBook(const std::string& database);
  ~KeyBook();
  KeyBook(const KeyBook&) = delete;
  KeyBook& operator=(const KeyBook&) = delete;

  struct Verdict {
    std::string reason;   // why the caller is not welcome; "": it is
    bool is_new = false;  // it was not known, and its token has admitted it
  };
  // Who only asks is told what would be said, and changes nothing.
  Verdict judge(const transport::Hello& hello, const transport::ChannelBinding& channel);
  // Why a key that was welcome is so no more; "": it still is.
  std::string why_barred(const std::string& run, const Fingerprint& key);
  // Differs from the last one if another process has written.
  uint64_t version();

  struct Terms {
    uint64_t uses = 0;   // keys that it admits; 0: until it is revoked
    double seconds = 0;  // that it is good for; 0: for ever
  };
  Token invite(const std::string& run, const Terms& terms);
  // The one in the address that a coordinator with this key prints: without a limit, and the same
  // until it is revoked.
  Token standing_token(const std::string& run, const transport::Identity& coordinator);
  // A key is barred also where it was never admitted.
  void revoke(const std::string& run, const Fingerprint& key);
  // `with_keys`: those as well that it has admitted. False: the run has no such token.
  bool revoke(const std::string& run, const TokenId& token, bool with_keys);

  // What the owner wants to see; times are seconds since 1970.
  struct TokenRow {
    TokenId id{};
    bool is_standing = false;
    bool is_revoked = false;
    std::optional<uint64_t> issued;  // nullopt: before that was noted
    std::optional<uint64_t> expires;
    std::optional<uint64_t> uses_left;
    uint64_t used = 0;
  };
  struct KeyRow {
    Fingerprint fingerprint{};
    std::optional<TokenId> token;  // that admitted it; nullopt: it was only ever barred
    bool is_revoked = false;
  };
  std::vector<TokenRow> tokens(const std::string& run);  // oldest first
  std::vector<KeyRow> keys(const std::string& run);      // as they came

  const std::string& path() const { return path_; }

 private:
  struct Closer {
    void operator()(sqlite3* handle) const;
  };
  class Transaction;

  void open();
  void check(int code);
  void execute(const std::string& sql);
  uint64_t number(const char* sql);
  Verdict judge_token(const transport::Hello& hello, const transport::ChannelBinding& channel);
  void add_key(const transport::Hello& hello, const TokenId& token);
  void add_token(const std::string& run, const Token& token, const Terms& terms, bool is_standing);

  std::string path_;
  std::unique_ptr<sqlite3, Closer> handle_;
};

}  // namespace pccl::membership
