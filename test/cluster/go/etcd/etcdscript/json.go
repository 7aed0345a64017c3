package main

import (
	"encoding/json"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// What protobuf's own JSON makes hard to read is different here: bytes are strings of one character for each byte
// (Latin-1), so that keys of ASCII are themselves. Numbers are numbers, but for uint64 and for ids of leases, which use
// more bits than JavaScript's numbers have: those are strings of decimal digits. Fields have the names of the proto
// files.

// isLong tells the numbers that are written as strings.
func isLong(field protoreflect.FieldDescriptor) bool {
	name := field.Name()
	return field.Kind() == protoreflect.Uint64Kind || name == "ID" || name == "lease"
}

// render makes a JSON object of a message, with every field but messages and choices (oneof) that are not there.
func render(message protoreflect.Message) map[string]any {
	object := map[string]any{}
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.HasPresence() && !message.Has(field) {
			continue
		}
		value := message.Get(field)
		name := string(field.Name())
		if field.IsList() {
			list := []any{}
			for i := range value.List().Len() {
				list = append(list, renderValue(field, value.List().Get(i)))
			}
			object[name] = list
		} else {
			object[name] = renderValue(field, value)
		}
	}
	return object
}

func renderValue(field protoreflect.FieldDescriptor, value protoreflect.Value) any {
	switch field.Kind() {
	case protoreflect.MessageKind:
		return render(value.Message())
	case protoreflect.BytesKind:
		return fromBytes(value.Bytes())
	case protoreflect.EnumKind:
		if known := field.Enum().Values().ByNumber(value.Enum()); known != nil {
			return string(known.Name())
		}
		return int32(value.Enum())
	}
	if isLong(field) {
		return value.String()
	}
	return value.Interface()
}

// fill sets a message's fields from a JSON object; those that have no place there are an error.
func fill(message protoreflect.Message, object map[string]any) error {
	for name, given := range object {
		field := message.Descriptor().Fields().ByName(protoreflect.Name(name))
		if field == nil {
			return fmt.Errorf("%s has no field %q", message.Descriptor().FullName(), name)
		}
		if !field.IsList() {
			value, err := parseValue(field, given, func() protoreflect.Value { return message.NewField(field) })
			if err != nil {
				return err
			}
			message.Set(field, value)
			continue
		}
		elements, ok := given.([]any)
		if !ok {
			return fmt.Errorf("%s: not a list", name)
		}
		list := message.Mutable(field).List()
		for _, element := range elements {
			value, err := parseValue(field, element, list.NewElement)
			if err != nil {
				return err
			}
			list.Append(value)
		}
	}
	return nil
}

func parseValue(field protoreflect.FieldDescriptor, given any, empty func() protoreflect.Value) (protoreflect.Value, error) {
	kind := field.Kind()
	switch given := given.(type) {
	case bool:
		if kind == protoreflect.BoolKind {
			return protoreflect.ValueOfBool(given), nil
		}
	case map[string]any:
		if kind == protoreflect.MessageKind {
			value := empty()
			return value, fill(value.Message(), given)
		}
	case string:
		switch kind {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(given), nil
		case protoreflect.BytesKind:
			bytes, err := toBytes(given)
			return protoreflect.ValueOfBytes(bytes), err
		case protoreflect.EnumKind:
			if known := field.Enum().Values().ByName(protoreflect.Name(given)); known != nil {
				return protoreflect.ValueOfEnum(known.Number()), nil
			}
		default:
			return parseNumber(field, given)
		}
	case json.Number:
		return parseNumber(field, given.String())
	}
	return protoreflect.Value{}, fmt.Errorf("%s: %v is no %s", field.FullName(), given, kind)
}

func parseNumber(field protoreflect.FieldDescriptor, digits string) (protoreflect.Value, error) {
	switch field.Kind() {
	case protoreflect.Int64Kind:
		number, err := strconv.ParseInt(digits, 10, 64)
		return protoreflect.ValueOfInt64(number), err
	case protoreflect.Uint64Kind:
		number, err := strconv.ParseUint(digits, 10, 64)
		return protoreflect.ValueOfUint64(number), err
	case protoreflect.EnumKind:
		number, err := strconv.ParseInt(digits, 10, 32)
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(number)), err
	}
	return protoreflect.Value{}, fmt.Errorf("%s: %s is no %s", field.FullName(), digits, field.Kind())
}

func fromBytes(bytes []byte) string {
	runes := make([]rune, len(bytes))
	for i, each := range bytes {
		runes[i] = rune(each)
	}
	return string(runes)
}

func toBytes(text string) ([]byte, error) {
	bytes := make([]byte, 0, len(text))
	for _, each := range text {
		if each > 0xff {
			return nil, fmt.Errorf("%q is no byte: bytes are given as characters up to U+00FF", each)
		}
		bytes = append(bytes, byte(each))
	}
	return bytes, nil
}
