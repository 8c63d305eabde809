"""Every size, depth, count and wait the server enforces, each with its unit and its reason."""

from typing import Final

# --- the request, before anything is decoded -------------------------------------------------
# Envoy caps a header block at 60 KiB by default (48 KiB in our configuration) and a buffered body
# at 256 KiB; the CheckRequest adds a peer certificate and metadata. 1 MiB leaves room for both.
CHECK_REQUEST_BYTES_MAX: Final = 1024 * 1024
HEADERS_MAX: Final = 200  # Envoy admits 100 by default; room for trusted filters that add some
BODY_BYTES_MAX: Final = 256 * 1024  # with_request_body.max_request_bytes in our configuration
RAW_PATH_BYTES_MAX: Final = 8 * 1024  # the common server limit for a request line
PATH_SEGMENTS_MAX: Final = 256  # bounds every per-segment pattern match
QUERY_PARAMETERS_MAX: Final = 256
HOST_BYTES_MAX: Final = 253 + 6  # RFC 1035 §2.3.4 name plus ":65535"
METHOD_BYTES_MAX: Final = 32
CONTEXT_EXTENSIONS_MAX: Final = 64
PEER_CERTIFICATE_BYTES_MAX: Final = 32 * 1024  # URL-encoded PEM of one leaf; real ones are ~1.5 KiB
XFCC_BYTES_MAX: Final = 32 * 1024  # an element with certificate and chain is some 6 KiB
XFCC_ELEMENTS_MAX: Final = 16  # one for each hop; more proxies in a row is a loop

# --- SPIFFE ----------------------------------------------------------------------------------
SPIFFE_ID_BYTES_MAX: Final = 2048  # SPIFFE-ID §2.3
TRUST_DOMAIN_BYTES_MAX: Final = 255  # SPIFFE-ID §2.3
JWT_SVID_LIFETIME_S_MAX: Final = 3600  # a bearer token; SPIRE's default is five minutes

# --- delegation (defaults; configuration may only lower links, actors, bytes and lifetimes) ---
LINKS_MAX: Final = 4
ACTORS_MAX: Final = 5  # draft-mcguinness-oauth-actor-profile §4.6: deeper chains MUST be rejected
CHAIN_TOTAL_BYTES_MAX: Final = 16 * 1024
TOKEN_BYTES_MAX: Final = 4 * 1024  # one root or one link
TOKEN_JSON_DEPTH_MAX: Final = 16
X5C_CERTIFICATES_MAX: Final = 4  # leaf and intermediates
CLOCK_SKEW_S: Final = 30
LINK_LIFETIME_S_MAX: Final = 900
SCOPE_ITEMS_MAX: Final = 128
AUDIENCES_MAX: Final = 32
AUTHORIZATION_DETAILS_MAX: Final = 32
CHAIN_CACHE_ENTRIES_MAX: Final = 10_000
CHAIN_CACHE_BYTES_MAX: Final = 64 * 1024 * 1024

# --- JSON bodies -----------------------------------------------------------------------------
JSON_DEPTH_MAX: Final = 64
JSON_MEMBERS_MAX: Final = 10_000
# The widest integer every JSON parser agrees on (RFC 8259 §6, RFC 7493 §2.2).
JSON_INTEGER_MAX: Final = 2**53 - 1
ARGUMENTS_MAX: Final = 64  # declared by one bundle; each is looked for in every request
POINTER_CHARS_MAX: Final = 512  # of a declared argument: a path through a body, written by hand
IDENTIFIER_CHARS_MAX: Final = 256  # of a task, context, tenant or extension: UUIDs and short URIs
ARGUMENT_ITEMS_MAX: Final = 256  # of a list that a rule searches, at every rule anew

# --- policy ----------------------------------------------------------------------------------
POLICY_STRING_BYTES_MAX: Final = 4 * 1024  # no matcher function ever sees a longer string
POLICY_FILE_BYTES_MAX: Final = 32 * 1024 * 1024
EXPRESSION_CHARS_MAX: Final = 16 * 1024
EXPRESSION_DEPTH_MAX: Final = 64

# --- answers ---------------------------------------------------------------------------------
DENIED_BODY_BYTES_MAX: Final = 8 * 1024  # Envoy: max_denied_response_body_bytes 16 KiB
DETAIL_CHARS_MAX: Final = 300  # a denial's detail is one sentence

# --- server ----------------------------------------------------------------------------------
# A check takes milliseconds and Envoy waits 250. One call that meets the change of listeners can be
# left unanswered by gRPC; it is cut off after this long, and Envoy has denied it before.
LISTENER_RENEWAL_GRACE_S: Final = 1.0
DRAIN_TIMEOUT_S: Final = 10.0  # in-flight calls finish within Envoy's own 250 ms; rest is margin
CONCURRENT_CHECKS_MAX: Final = 4096  # beyond this gRPC answers RESOURCE_EXHAUSTED: Envoy denies
RECORD_FIELD_CHARS_MAX: Final = 1024  # longer client-controlled strings are cut, digest kept
