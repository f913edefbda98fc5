/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "control/host.h"

/* The port of an http URL that has none. */
#define HTTP_PORT 80

struct host {
  char name[NI_MAXHOST]; /* a name or an address, without brackets */
  unsigned long port;
};

/* Split NAME[:PORT] or [ADDRESS][:PORT].  False if it is neither. */
static bool
split_host (const char *value, struct host *h)
{
  const char *end = value + strcspn (value, ":"), *port = end;
  char *rest;
  size_t len;

  if (value[0] == '[') {
    end = strchr (++value, ']');
    if (end == NULL)
      return false;
    port = end + 1;
  }
  len = end - value;
  if (len == 0 || len >= sizeof h->name)
    return false;
  memcpy (h->name, value, len);
  h->name[len] = '\0';

  h->port = HTTP_PORT;
  if (*port == '\0')
    return true;
  if (port[0] != ':' || port[1] < '0' || port[1] > '9')
    return false;
  h->port = strtoul (port + 1, &rest, 10);
  return *rest == '\0';
}

/* Is `name' the text of this address? */
static bool
is_address (const char *name, const struct sockaddr *addr)
{
  if (addr->sa_family == AF_INET) {
    const struct sockaddr_in *in = (const struct sockaddr_in *)addr;
    struct in_addr a;

    return inet_pton (AF_INET, name, &a) == 1 &&
           a.s_addr == in->sin_addr.s_addr;
  }
  else {
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)addr;
    struct in6_addr a;

    return inet_pton (AF_INET6, name, &a) == 1 &&
           IN6_ARE_ADDR_EQUAL (&a, &in6->sin6_addr);
  }
}

static unsigned
port_of (const struct sockaddr *addr)
{
  return ntohs (addr->sa_family == AF_INET
                ? ((const struct sockaddr_in *)addr)->sin_port
                : ((const struct sockaddr_in6 *)addr)->sin6_port);
}

bool
host_is_ours (const char *value, const char *address,
              const struct sockaddr *local)
{
  struct host host, own;

  if (value == NULL || !split_host (value, &host) ||
      host.port != port_of (local))
    return false;
  return strcasecmp (host.name, "localhost") == 0 ||
         strcmp (host.name, "127.0.0.1") == 0 ||
         strcmp (host.name, "::1") == 0 ||
         is_address (host.name, local) ||
         (split_host (address, &own) &&
          strcasecmp (host.name, own.name) == 0);
}
