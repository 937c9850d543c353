//! POSIX ACLs as they stand in `system.posix_acl_access` and `system.posix_acl_default`.
