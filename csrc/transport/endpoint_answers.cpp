// What an endpoint answers to those who call it.
#include <algorithm>

#include "transport/dialer.h"
#include "transport/endpoint.h"

namespace pccl::transport {
namespace {

// Callers that nobody here has asked for. A world is smaller; one that is over takes 4 KiB.
constexpr size_t kUnknownCallersMax = 1024;

bool is_nobody(const MemberId& id) { return id == MemberId{}; }

}  // namespace

// Before anything else is said: whoever has no key here learns nothing.
Reply Endpoint::judge_key(const Hello& hello, const TlsSession& tls) {
  const auto refuse = [this](std::string reason) {
    refused_keys_ += 1;
    return Reply{Answer::Refused, std::move(reason)};
  };
  if (hello.from.fingerprint != tls.peer())
    return refuse("wrong key: the caller has " + to_text(tls.peer()) + ", its address names " +
                  to_text(hello.from.fingerprint));
  const auto known = known_.find(hello.from.member_id);
  if (known != known_.end() && known->second->peer.fingerprint != tls.peer())
    return refuse("wrong key: " + to_text(hello.from.member_id) + " has another than " +
                  to_text(tls.peer()));
  if (options_.gate) {
    const std::string reason = options_.gate(hello, tls.channel());
    return reason.empty() ? Reply{} : refuse(reason);
  }
  if (known == known_.end())
    return {Answer::NotYet, "no member is known here with the key " + to_text(tls.peer())};
  return {};
}

Reply Endpoint::judge(const Hello& hello, const TlsSession* tls, Connection*& connection) {
  if (tls != nullptr) {
    Reply reply = judge_key(hello, *tls);
    if (reply.answer != Answer::Welcome) return reply;
  }
  // Where a connection broke, it matters who answers: the member that was there, or another.
  const Answer refusal = hello.intent == Intent::Open ? Answer::Refused : Answer::Stranger;
  if (hello.from.run != options_.run && !options_.accepts_any_run) {
    return {refusal, "wrong run: this member is in '" + options_.run + "', the caller in '" +
                         hello.from.run + "' (a process of another or an earlier job?)"};
  }
  const bool wants_coordinator = is_nobody(hello.to) && options_.accepts_any_run;
  if (hello.to != address_.member_id && !wants_coordinator) {
    return {refusal, "wrong member: the caller wants " + to_text(hello.to) + ", this is " +
                         to_text(address_.member_id) + " (an address of a process that is gone?)"};
  }
  if (is_nobody(hello.from.member_id)) return {Answer::Refused, "the caller has no member id"};
  if (hello.from.member_id == address_.member_id)
    return {Answer::Refused, "a member can't connect to itself"};
  if (asks_only(hello.intent)) return {Answer::Alive, ""};
  if (hello.intent == Intent::Resume) return judge_resume(hello, connection);
  if (!known_.contains(hello.from.member_id)) make_room_for_caller();
  connection = &known_or_new(hello.from);
  // Unless there is something left to tell the caller.
  if (is_closing_ && !connection->has_unsent()) return {Answer::Refused, "this member is leaving"};
  const bool joins = hello.nonce == connection->nonce && hello.socket_index > 0;
  // The first of these sockets broke before this one was made.
  if (joins && connection->is_numbered) return judge_resume(hello, connection);
  const bool may_call_again = options_.accepts_any_run && !joins;
  if (may_call_again && connection->state != Connection::State::Idle)
    connection = &make_way(*connection);
  return judge_open(hello, *connection);
}

Reply Endpoint::judge_open(const Hello& hello, Connection& connection) {
  switch (connection.state) {
    case Connection::State::Dialing:
      if (!yields_to(hello, connection)) return {Answer::Duplicate, "already dialing you"};
      cancel_dials(connection);
      [[fallthrough]];
    case Connection::State::Idle: {
      Reply reply;
      reply.resumes = hello.resumes && hello.road == Road::Tcp && !is_nobody(hello.to) &&
                      wants_to_resume(connection);
      if (reply.resumes) connection.attempts_seen.admit(hello.attempt);
      return reply;
    }
    case Connection::State::Up:
      if (hello.nonce == connection.nonce && hello.socket_index > 0 &&
          connection.link_count() < kSocketsMax)
        return {};
      return {Answer::Duplicate, "already connected"};
    case Connection::State::Suspended:
    case Connection::State::Closed:
      break;
  }
  return {Answer::Refused, "the connection between these members was closed"};
}

// Both sides dial. The smaller id's dial stands once its Hello is on the way. Until then it may be
// one that never gets through, to a member behind NAT, so the other's is taken.
bool Endpoint::yields_to(const Hello& hello, const Connection& connection) {
  if (hello.from.member_id < address_.member_id) return true;
  return std::none_of(dialers_.begin(), dialers_.end(), [&](const auto& dialer) {
    return &dialer->connection() == &connection && !dialer->finished() && dialer->is_asking() &&
           dialer->socket_index() == hello.socket_index;
  });
}

Reply Endpoint::judge_resume(const Hello& hello, Connection*& connection) {
  const auto known = known_.find(hello.from.member_id);
  if (known == known_.end() || known->second->state == Connection::State::Closed)
    return {Answer::Over, "that connection was closed"};
  Connection& wanted = *known->second;
  const bool is_there =
      wanted.state == Connection::State::Up || wanted.state == Connection::State::Suspended;
  if (!is_there || !wanted.is_numbered || hello.nonce != wanted.nonce ||
      hello.socket_index >= kSocketsMax)
    return {Answer::Refused, "there is no such connection"};
  if (!wanted.attempts_seen.admit(hello.attempt))
    return {Answer::Refused, "this call was made before"};
  if (!wanted.outgoing.may_acknowledge(hello.consumed))
    return {Answer::Refused, "frames that were not sent can't have been consumed"};
  if (!yields_to(hello, wanted)) return {Answer::Duplicate, "already dialing you"};
  connection = &wanted;
  Reply reply;
  reply.resumes = true;
  reply.consumed = wanted.incoming.consumed();
  return reply;
}

// A member calls a coordinator again: whatever became of its last connection, it has given it up.
Connection& Endpoint::make_way(Connection& connection) {
  const MemberAddress peer = connection.peer;
  end_connection(connection, {ErrorKind::MemberLost, "it has called again"});
  // Unless who was told has forgotten it.
  const auto found = known_.find(peer.member_id);
  if (found != known_.end()) {
    others_.push_back(std::move(found->second));
    known_.erase(found);
  }
  return known_or_new(peer);
}

// Where no keys are used, whoever knows the run's name has a connection; a member of a group that
// is made here later looks the same. Those that are over make way first, then the oldest.
void Endpoint::make_room_for_caller() {
  if (options_.accepts_any_run) return;  // a coordinator has limits of its own
  const auto rank = [](const Connection& connection) {
    return std::pair(connection.state != Connection::State::Closed, connection.number);
  };
  size_t callers = 0;
  Connection* first = nullptr;
  for (const auto& [id, connection] : known_) {
    if (connection->is_wanted) continue;
    callers += 1;
    if (first == nullptr || rank(*connection) < rank(*first)) first = connection.get();
  }
  if (callers < kUnknownCallersMax) return;
  const Error error{ErrorKind::MemberLost, "too many call that nobody here knows"};
  end_connection(*first, error);
  sink_.on_lost(*first, error);  // also what a polite one has left
  forget(*first);
}

}  // namespace pccl::transport
