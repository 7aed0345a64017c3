// Etcddescribe prints the gRPC services of etcd as etcd's own Go packages describe them, as JSON:
//
//	{"services": [{"name", "methods": [{"path", "input", "output", "clientStreaming", "serverStreaming"}, ...]}, ...],
//	 "messages": {FULL NAME: [{"name", "number", "type", "typeName", "cardinality", "oneof", "packed"}, ...]},
//	 "enums": {FULL NAME: {NAME: NUMBER}}}
//
// Messages and enums are those that the services' requests and responses are made of, fields in order of their
// numbers. type and cardinality are protobuf's words (bytes, int64, message ...; optional, repeated); typeName is
// there for messages and enums, oneof and packed where they apply.
//
// With --descriptors it prints a FileDescriptorSet instead (descriptor.proto), the files of these services and all
// that they import, each after what it imports.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	// Every service that an etcd server registers.
	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	_ "google.golang.org/grpc/health/grpc_health_v1"
)

type method struct {
	Path            string                `json:"path"`
	Input           protoreflect.FullName `json:"input"`
	Output          protoreflect.FullName `json:"output"`
	ClientStreaming bool                  `json:"clientStreaming"`
	ServerStreaming bool                  `json:"serverStreaming"`
}

type service struct {
	Name    protoreflect.FullName `json:"name"`
	Methods []method              `json:"methods"`
}

type field struct {
	Name        protoreflect.Name        `json:"name"`
	Number      protoreflect.FieldNumber `json:"number"`
	Type        string                   `json:"type"`
	TypeName    protoreflect.FullName    `json:"typeName,omitempty"`
	Cardinality string                   `json:"cardinality"`
	Oneof       protoreflect.Name        `json:"oneof,omitempty"`
	Packed      bool                     `json:"packed,omitempty"`
}

type description struct {
	Services []service                                                    `json:"services"`
	Messages map[protoreflect.FullName][]field                            `json:"messages"`
	Enums    map[protoreflect.FullName]map[string]protoreflect.EnumNumber `json:"enums"`
}

func main() {
	descriptors := flag.Bool("descriptors", false, "print a binary FileDescriptorSet instead of JSON")
	flag.Parse()
	if err := print(*descriptors); err != nil {
		fmt.Fprintln(os.Stderr, "etcddescribe:", err)
		os.Exit(1)
	}
}

func print(descriptors bool) error {
	var files []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if file.Services().Len() > 0 {
			files = append(files, file)
		}
		return true
	})
	slices.SortFunc(files, func(a, b protoreflect.FileDescriptor) int { return strings.Compare(a.Path(), b.Path()) })
	if descriptors {
		set, err := fileSet(files)
		if err != nil {
			return err
		}
		bytes, err := proto.Marshal(set)
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(bytes)
		return err
	}
	output := json.NewEncoder(os.Stdout)
	output.SetIndent("", "\t")
	return output.Encode(describe(files))
}

func describe(files []protoreflect.FileDescriptor) description {
	all := description{
		Messages: map[protoreflect.FullName][]field{},
		Enums:    map[protoreflect.FullName]map[string]protoreflect.EnumNumber{},
	}
	for _, file := range files {
		for i := range file.Services().Len() {
			each := file.Services().Get(i)
			described := service{Name: each.FullName()}
			for i := range each.Methods().Len() {
				each := each.Methods().Get(i)
				described.Methods = append(described.Methods, method{
					Path:            fmt.Sprintf("/%s/%s", described.Name, each.Name()),
					Input:           each.Input().FullName(),
					Output:          each.Output().FullName(),
					ClientStreaming: each.IsStreamingClient(),
					ServerStreaming: each.IsStreamingServer(),
				})
				all.add(each.Input())
				all.add(each.Output())
			}
			all.Services = append(all.Services, described)
		}
	}
	return all
}

// add describes a message and all that it is made of.
func (d *description) add(message protoreflect.MessageDescriptor) {
	if _, known := d.Messages[message.FullName()]; known {
		return
	}
	// Before its fields, as messages may contain themselves.
	d.Messages[message.FullName()] = []field{}
	fields := []field{}
	for i := range message.Fields().Len() {
		each := message.Fields().Get(i)
		described := field{
			Name:        each.Name(),
			Number:      each.Number(),
			Type:        each.Kind().String(),
			Cardinality: each.Cardinality().String(),
			Packed:      each.IsPacked(),
		}
		// The compiler makes a oneof of every proto3 field that is marked "optional"; the author did not.
		if oneof := each.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
			described.Oneof = oneof.Name()
		}
		if inner := each.Message(); inner != nil {
			described.TypeName = inner.FullName()
			d.add(inner)
		}
		if enum := each.Enum(); enum != nil {
			described.TypeName = enum.FullName()
			values := map[string]protoreflect.EnumNumber{}
			for i := range enum.Values().Len() {
				value := enum.Values().Get(i)
				values[string(value.Name())] = value.Number()
			}
			d.Enums[enum.FullName()] = values
		}
		fields = append(fields, described)
	}
	slices.SortFunc(fields, func(a, b field) int { return int(a.Number - b.Number) })
	d.Messages[message.FullName()] = fields
}

// fileSet holds files after what they import.
func fileSet(files []protoreflect.FileDescriptor) (*descriptorpb.FileDescriptorSet, error) {
	set := &descriptorpb.FileDescriptorSet{}
	added := map[string]bool{}
	var add func(file protoreflect.FileDescriptor) error
	add = func(file protoreflect.FileDescriptor) error {
		if added[file.Path()] {
			return nil
		}
		added[file.Path()] = true
		copied := protodesc.ToFileDescriptorProto(file)
		for i, name := range copied.Dependency {
			// etcd's files import each other by paths from its repository, but are registered by their base names.
			imported, err := protoregistry.GlobalFiles.FindFileByPath(name)
			if err != nil {
				imported, err = protoregistry.GlobalFiles.FindFileByPath(path.Base(name))
			}
			if err != nil {
				return fmt.Errorf("%s imports %s: %w", file.Path(), name, err)
			}
			copied.Dependency[i] = imported.Path()
			if err := add(imported); err != nil {
				return err
			}
		}
		for i, message := range copied.MessageType {
			sayPacked(message, file.Messages().Get(i))
		}
		set.File = append(set.File, copied)
		return nil
	}
	for _, file := range files {
		if err := add(file); err != nil {
			return nil, err
		}
	}
	// Nothing is missing: the set stands by itself.
	_, err := protodesc.NewFiles(set)
	return set, err
}

// sayPacked spells out what is the default of proto3: protobufjs forgets it where a field has other options.
func sayPacked(copied *descriptorpb.DescriptorProto, message protoreflect.MessageDescriptor) {
	for i, field := range copied.Field {
		if options := field.Options; options != nil && message.Fields().Get(i).IsPacked() {
			options.Packed = proto.Bool(true)
		}
	}
	for i, nested := range copied.NestedType {
		sayPacked(nested, message.Messages().Get(i))
	}
}
