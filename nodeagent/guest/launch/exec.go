package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exec runs in the launched process: it execs the task that the agent at the
// socket sends, and returns only on failure. args holds the path of the socket.
func Exec(args []string) error {
	if len(args) != 1 {
		return errors.New("want one argument: the path of a socket")
	}
	// Namespaces and the like belong to a thread; this one becomes the program.
	// Nothing here uses package net or anything else that starts the runtime's
	// poller: its descriptors would be in the way.
	runtime.LockOSThread()
	socket, err := connect(args[0])
	if err != nil {
		return fmt.Errorf("reach the agent: %w", err)
	}
	err = become(socket)
	_, _ = unix.Write(socket, []byte(err.Error())) // the agent may be gone
	return err
}

func connect(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

func become(socket int) error {
	task, files, err := receive(socket)
	if err != nil {
		return fmt.Errorf("receive the task: %w", err)
	}
	if err := arrange(task, files); err != nil {
		return err
	}
	if err := leaveIdentity(task.Dir); err != nil {
		return fmt.Errorf("write the process file: %w", err)
	}
	if err := unprivileged(task); err != nil {
		return err
	}
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/"}
	return fmt.Errorf("run %s: %w", task.Path, syscall.Exec(task.Path, append([]string{task.Path}, task.Args...), env))
}

// received holds a task's files by purpose.
type received struct {
	files, kept []int
	log         int
}

func receive(socket int) (Task, received, error) {
	header, fds, err := receiveHeader(socket)
	if err != nil {
		return Task{}, received{}, err
	}
	var size, files, kept int
	if _, err := fmt.Sscanf(header, "%d %d %d\n", &size, &files, &kept); err != nil {
		return Task{}, received{}, err
	}
	if size <= 0 || size > 1<<20 || files < 0 || kept < 0 || len(fds) != files+kept+1 {
		return Task{}, received{}, fmt.Errorf("got %d files with %q", len(fds), header)
	}
	raw := make([]byte, size)
	for got := 0; got < size; {
		n, err := unix.Read(socket, raw[got:])
		if err != nil || n == 0 {
			return Task{}, received{}, fmt.Errorf("the agent hung up before it was complete: %w", err)
		}
		got += n
	}
	var task Task
	err = json.Unmarshal(raw, &task)
	return task, received{files: fds[:files], kept: fds[files : files+kept], log: fds[files+kept]}, err
}

// receiveHeader reads up to the newline, and the files that are sent with it.
func receiveHeader(socket int) (string, []int, error) {
	var text []byte
	var fds []int
	one, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*maxFiles))
	for len(text) < 64 {
		n, oobn, _, _, err := unix.Recvmsg(socket, one, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return "", nil, err
		}
		if n == 0 {
			return "", nil, errors.New("the agent hung up")
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return "", nil, err
		}
		for _, m := range messages {
			got, err := unix.ParseUnixRights(&m)
			if err != nil {
				return "", nil, err
			}
			fds = append(fds, got...)
		}
		text = append(text, one[0])
		if one[0] == '\n' {
			return string(text), fds, nil
		}
	}
	return "", nil, errors.New("the header does not end")
}

// arrange moves the files to the descriptors that the program expects.
func arrange(task Task, in received) error {
	// All received descriptors are below, because the kernel assigns the lowest
	// free numbers.
	for i, fd := range in.files {
		if fd >= task.FirstFile {
			return fmt.Errorf("got file %d as descriptor %d: descriptors from %d on belong to the program", i, fd, task.FirstFile)
		}
		if err := unix.Dup3(fd, task.FirstFile+i, 0); err != nil {
			return fmt.Errorf("move file %d to its descriptor: %w", i, err)
		}
	}
	for _, fd := range in.kept {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return err
		}
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for fd, to := range []int{null, in.log, in.log} {
		if err := unix.Dup3(to, fd, 0); err != nil {
			return err
		}
	}
	return nil
}

// leaveIdentity runs before everything else: a process that finds the
// directory's lock held can then read which process holds it.
func leaveIdentity(dir string) error {
	id, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	raw, err := json.Marshal(id)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, processFile)
	fd, err := unix.Open(path+".tmp", unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, raw)
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	return unix.Rename(path+".tmp", path)
}

// unprivileged drops everything that the program does not need.
func unprivileged(task Task) error {
	if len(task.CPUs) > 0 {
		var set unix.CPUSet
		for _, cpu := range task.CPUs {
			set.Set(cpu)
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("bind to processors %v: %w", task.CPUs, err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil { // a core dump would contain the guest's memory
		return fmt.Errorf("disable core dumps: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	unix.Umask(0o077)
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("leave the host's network: %w", err)
	}
	if err := syscall.Setgroups(task.Groups); err != nil {
		return fmt.Errorf("drop the groups: %w", err)
	}
	if err := syscall.Setresgid(task.GID, task.GID, task.GID); err != nil {
		return fmt.Errorf("change to group %d: %w", task.GID, err)
	}
	if err := syscall.Setresuid(task.UID, task.UID, task.UID); err != nil {
		return fmt.Errorf("change to user %d: %w", task.UID, err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
