package budget

// Rows are the rows of the table, in its order. What no test has measured is shown as not measured.
var Rows = []Row{
	{"webhook-restart", "webhook service: all replicas killed at once, then a rolling restart, in mid-run", "0"},
	{"webhook-gone", "webhook service: all replicas gone for 2 minutes in mid-run", "0"},
	{"webhook-gone-long", "webhook service: gone from just after admission until 20 s before the pod's end", "0"},

	{"shipper-kill", "shipper: SIGKILL 100 times at random moments", "0, no duplicate"},
	{"shipper-kill-upload", "shipper: SIGKILL in the middle of an upload", "0, no duplicate"},
	{"shipper-kill-record", "shipper: SIGKILL in the middle of recording its position", "0, no duplicate"},
	{"shipper-kill-delete", "shipper: SIGKILL in the middle of deleting what is shipped", "0, no duplicate"},
	{"shipper-oom", "shipper: OOM-killed", "0, no duplicate"},

	{"s3-refused", "S3: connection refused", "0"},
	{"s3-blackhole", "S3: black-holed, and then it goes on", "0"},
	{"s3-blackhole-cut", "S3: black-holed, and the connections never go on", "0"},
	{"s3-503-some", "S3: 500 and 503 for 30 % of all requests", "0"},
	{"s3-503-all", "S3: 500 and 503 for all requests, for 2 minutes", "0"},
	{"s3-slow", "S3: 64 KB/s", "0"},
	{"s3-cut-body", "S3: connection cut in the middle of a request's body", "0"},
	{"s3-answer-lost", "S3: answer lost after the object was stored", "0, no duplicate"},
	{"s3-clock-service", "clocks: the node's and the ticket service's are 12 hours apart, either way", "0"},
	{"s3-ticket-expired", "S3: the ticket has expired by the store's clock (clocks apart, or a ticket that is too old)", "0"},
	{"s3-403", "S3: 403, the signing key is wrong and then right", "0"},
	{"s3-no-bucket", "S3: bucket missing, then made", "0"},
	{"s3-400", "S3: 400 for one container's objects, for ever", "of the other containers 0"},
	{"s3-down-at-end", "S3: down at the pod's end, back within the raised grace", "0"},
	{"s3-down-past-grace", "S3: down at the pod's end for longer than the grace", "what was not shipped; the reader is told"},

	{"step-kill-process", "step: SIGKILL of the user's process", "0 of what was written"},
	{"step-kill-tee", "step: SIGKILL of tee, and so of the whole container", "0 of what was written"},
	{"step-kill-entrypoint", "step: SIGKILL of Tekton's entrypoint", "0 of what was written"},
	{"step-oom", "step: OOM kill of its cgroup", "0 of what was written"},

	{"pod-deleted", "pod deleted, graceful", "0"},
	{"pod-deleted-stubborn", "pod deleted, with a step that ignores SIGTERM through the whole grace", "0"},
	{"pod-deleted-force", "pod deleted with --force --grace-period=0", "the last flush interval"},
	{"taskrun-cancelled", "TaskRun cancelled", "0"},
	{"taskrun-timeout", "TaskRun timed out", "0"},
	{"pipelinerun-deleted", "PipelineRun deleted", "0"},
	{"namespace-deleted", "namespace deleted", "0"},

	{"node-kubelet", "node: kubelet restarted", "0"},
	{"node-containerd", "node: containerd restarted", "0"},
	{"node-power-cut", "node: everything killed with SIGKILL at once (a power cut)", "the last flush interval"},

	{"disk-eviction", "disk: pod evicted by its ephemeral-storage limit", "step as without shiplog; gap marked"},
	{"disk-low", "disk: nearly as full as where the kubelet evicts pods, while S3 is down", "step unharmed; gap marked; no eviction for our sake"},
	{"disk-low-node", "disk: the node's is nearly as full as that, with a real kubelet, while S3 is down", "step unharmed; gap marked; no eviction"},
	{"disk-full", "disk: emptyDir full (ENOSPC)", "step unharmed; gap marked"},
	{"disk-full-end", "disk: emptyDir full (ENOSPC) from some moment to the pod's end", "step unharmed; gap marked"},
	{"disk-inodes", "disk: no inodes left", "step unharmed; gap marked"},
	{"disk-quota", "disk: quota used up (EDQUOT)", "step unharmed; gap marked"},
	{"spool-limit", "spool limit reached while S3 is down", "step unharmed; gap marked; what is kept is exact"},

	{"log-5gib", "a log of 5 GiB", "0; memory flat, disk bounded"},
	{"log-20-steps", "20 steps at once", "0"},
	{"log-6-hours", "a step of 6 hours at 1 line a minute (accelerated clock)", "0"},
}
