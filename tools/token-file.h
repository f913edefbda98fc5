/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The token that opens a control interface, from a file. */

#ifndef CLONE_TOKEN_FILE_H
#define CLONE_TOKEN_FILE_H

/* Bytes of a token, with the final zero. */
#define TOKEN_FILE_MAX 4097

/* Read the first line of a file.  -1, logged, if that is not a token. */
extern int token_file_read (const char *file, char token[TOKEN_FILE_MAX]);

#endif /* CLONE_TOKEN_FILE_H */
