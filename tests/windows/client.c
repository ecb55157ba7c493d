/* client.exe: what other programs of Windows do to ours, for tests/windows/main.rs.
 *
 *   pipe NAME          sends standard input to \\.\pipe\NAME, then an empty message, and copies what comes to
 *                      standard output until an empty message or the end. Exit status 1: no such pipe, 2: busy.
 *   talk NAME          the same, but standard input may go on when the pipe has ended a half: no empty message.
 *   quit THREAD        posts WM_QUIT to a thread, as podman ends win-sshproxy.
 *   close PID          posts WM_CLOSE to the windows of a process, as taskkill does. Exit status 1: it has none.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

static HANDLE pipe_handle;
static int half;

/* Overlapped, as the two directions must not wait for one another. */
static BOOL transfer(BOOL writes, char *bytes, DWORD length, DWORD *done) {
    OVERLAPPED pending = {0};
    pending.hEvent = CreateEventA(NULL, TRUE, FALSE, NULL);
    BOOL ok = writes ? WriteFile(pipe_handle, bytes, length, NULL, &pending)
                     : ReadFile(pipe_handle, bytes, length, NULL, &pending);
    if (!ok && GetLastError() != ERROR_IO_PENDING && GetLastError() != ERROR_MORE_DATA) {
        CloseHandle(pending.hEvent);
        return FALSE;
    }
    ok = GetOverlappedResult(pipe_handle, &pending, done, TRUE) || GetLastError() == ERROR_MORE_DATA;
    CloseHandle(pending.hEvent);
    return ok;
}

static DWORD WINAPI send_input(void *unused) {
    static char bytes[1 << 16];
    HANDLE input = GetStdHandle(STD_INPUT_HANDLE);
    DWORD length, done;
    (void)unused;
    while (ReadFile(input, bytes, sizeof bytes, &length, NULL) && length > 0)
        if (!transfer(TRUE, bytes, length, &done)) return 1;
    if (half) transfer(TRUE, bytes, 0, &done);
    return 0;
}

static int talk(const char *name) {
    static char bytes[1 << 16];
    char path[300];
    HANDLE output = GetStdHandle(STD_OUTPUT_HANDLE);
    DWORD length, written;
    snprintf(path, sizeof path, "\\\\.\\pipe\\%s", name);
    pipe_handle = CreateFileA(path, GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, NULL);
    if (pipe_handle == INVALID_HANDLE_VALUE) return GetLastError() == ERROR_PIPE_BUSY ? 2 : 1;
    HANDLE sender = CreateThread(NULL, 0, send_input, NULL, 0, NULL);
    while (transfer(FALSE, bytes, sizeof bytes, &length) && length > 0)
        WriteFile(output, bytes, length, &written, NULL);
    if (half) WaitForSingleObject(sender, 10000);
    return 0;
}

static DWORD wanted;
static int closed;

static BOOL CALLBACK close_window(HWND window, LPARAM unused) {
    DWORD owner = 0;
    (void)unused;
    GetWindowThreadProcessId(window, &owner);
    if (owner == wanted && PostMessageA(window, WM_CLOSE, 0, 0)) closed++;
    return TRUE;
}

int main(int count, char **words) {
    if (count != 3) return 9;
    if (!strcmp(words[1], "pipe") || !strcmp(words[1], "talk")) {
        half = !strcmp(words[1], "pipe");
        return talk(words[2]);
    }
    wanted = strtoul(words[2], NULL, 10);
    if (!strcmp(words[1], "quit")) return !PostThreadMessageA(wanted, WM_QUIT, 0, 0);
    if (!strcmp(words[1], "close")) {
        EnumWindows(close_window, 0);
        return closed == 0;
    }
    return 9;
}
