/* SPDX-License-Identifier: Apache-2.0 */
#include "network/privilege.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/util.h"

#define CAPABILITIES_MAX 64

/* The kernel takes the mask in two halves. */
static int get(uint64_t *ret) {
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        struct __user_cap_data_struct half[_LINUX_CAPABILITY_U32S_3] = {0};

        if (syscall(SYS_capget, &header, half) < 0)
                return -errno;
        *ret = (uint64_t) half[1].permitted << 32 | half[0].permitted;
        return 0;
}

static int set(uint64_t mask) {
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        const uint32_t low = (uint32_t) mask, high = (uint32_t) (mask >> 32);
        const struct __user_cap_data_struct half[_LINUX_CAPABILITY_U32S_3] = {
                {.effective = low, .permitted = low, .inheritable = low},
                {.effective = high, .permitted = high, .inheritable = high},
        };

        return syscall(SYS_capset, &header, half) < 0 ? -errno : 0;
}

int privilege_keep(uint64_t capabilities) {
        uint64_t have = 0;

        int r = get(&have);
        if (r < 0)
                return r;
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
                return -errno;
        /* Without the right to drop from the bounding set, no new privileges still come from a program's file; root's
         * own come back on exec, though: who is root has that right. */
        for (int i = 0; i < CAPABILITIES_MAX; i++)
                if (!(capabilities & 1ULL << i) && prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0 && errno == EINVAL)
                        break; /* the kernel knows no more of them */
        if ((r = set(have & capabilities)) < 0)
                return r;
        /* nft shall have them, too, whoever runs it. */
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
                return -errno;
        for (int i = 0; i < CAPABILITIES_MAX; i++)
                if (have & capabilities & 1ULL << i && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0) < 0)
                        return -errno;
        return 0;
}
