// Command controlplane is the lab's Kubernetes: etcd, kube-apiserver, kube-controller-manager and kube-scheduler in one
// binary, chosen by the first argument, so that one cached build gives a whole control plane on any machine with Go.
//
//	controlplane pki DIR                     certificates and keys of one lab
//	controlplane etcd DIR CLIENT_URL PEER_URL
//	controlplane kube-apiserver|kube-controller-manager|kube-scheduler FLAGS...
package main

import (
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// Only the chosen constructor may run: each of them claims the process' one signal handler.
var commands = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: %s pki|etcd|kube-apiserver|kube-controller-manager|kube-scheduler ARGUMENTS", os.Args[0]))
	}
	name, arguments := os.Args[1], os.Args[2:]
	switch {
	case name == "pki" && len(arguments) == 1:
		fail(writePKI(arguments[0]))
	case name == "etcd" && len(arguments) == 3:
		fail(runEtcd(arguments[0], arguments[1], arguments[2]))
	case commands[name] != nil:
		command := commands[name]()
		command.SetArgs(arguments)
		os.Exit(cli.Run(command))
	default:
		fail(fmt.Errorf("unknown command or wrong number of arguments: %q", os.Args[1:]))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runEtcd(dir, client, peer string) error {
	clientURL, err := url.Parse(client)
	if err != nil {
		return err
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return err
	}
	config := embed.NewConfig()
	config.Dir = dir
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.LogLevel = "warn"
	// A lab outlives a kill of its processes (the page cache does), not a loss of power: the speed is worth that.
	config.UnsafeNoFsync = true
	config.AutoCompactionMode, config.AutoCompactionRetention = "periodic", "1h"
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-stop:
		return nil
	case err := <-server.Err():
		return err
	}
}
