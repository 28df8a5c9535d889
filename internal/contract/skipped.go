package contract

import "strings"

// SkippedPod stands in the place of a container's name in SkippedAnnotation where the reason holds for the whole pod. Tekton's containers
// cannot have this name, since theirs are prefixed.
const SkippedPod = "pod"

// Skipped is one entry of SkippedAnnotation.
type Skipped struct {
	Container string // or SkippedPod
	Reason    string // a named value, such as "no-command"
}

// FormatSkipped makes the value of SkippedAnnotation. Neither part may hold "=" or ","; container names and reasons do not.
func FormatSkipped(list []Skipped) string {
	pairs := make([]string, len(list))
	for i, s := range list {
		pairs[i] = s.Container + "=" + s.Reason
	}
	return strings.Join(pairs, ",")
}

// ParseSkipped reads what FormatSkipped makes. It leaves out entries of any other form: a tenant can type the annotation too.
func ParseSkipped(value string) []Skipped {
	var list []Skipped
	for pair := range strings.SplitSeq(value, ",") {
		container, reason, ok := strings.Cut(pair, "=")
		if ok && container != "" && reason != "" && !strings.Contains(reason, "=") {
			list = append(list, Skipped{Container: container, Reason: reason})
		}
	}
	return list
}

// ParseExclude reads ExcludeAnnotation. Spaces around names do not matter.
func ParseExclude(value string) []string {
	var names []string
	for name := range strings.SplitSeq(value, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}
