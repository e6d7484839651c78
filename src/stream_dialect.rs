//! The dialect that statements are parsed in: sqlparser's generic one, and `FOR SYSTEM_TIME AS OF` where a statement has it.

use std::any::TypeId;

use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect};

/// [`GenericDialect`] with table versions. The parser takes the one for the other wherever it asks.
#[derive(Debug, Default)]
pub(crate) struct StreamDialect {
    generic: GenericDialect,
    /// Only where it is written: `AT`, `BEFORE`, `CHANGES`, `VERSION` and `TIMESTAMP` behind a table would be read as
    /// versions, too, and no alias could be called that.
    has_versions: bool,
}

impl StreamDialect {
    /// `has_versions`: whether the statement says `SYSTEM_TIME`.
    pub(crate) fn new(has_versions: bool) -> Self {
        Self {
            generic: GenericDialect {},
            has_versions,
        }
    }
}

/// Forwards to the generic dialect, whose methods differ from the trait's.
macro_rules! forward {
    ($($method:ident),* $(,)?) => {
        $(fn $method(&self) -> bool {
            self.generic.$method()
        })*
    };
}

impl Dialect for StreamDialect {
    fn dialect(&self) -> TypeId {
        self.generic.dialect()
    }

    fn supports_table_versioning(&self) -> bool {
        self.has_versions
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.generic.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.generic.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.generic.is_identifier_part(ch)
    }

    forward!(
        supports_unicode_string_literal,
        supports_partition_by_after_order_by,
        supports_array_join_syntax,
        supports_group_by_expr,
        supports_group_by_with_modifier,
        supports_left_associative_joins_without_parens,
        supports_connect_by,
        supports_match_recognize,
        supports_pipe_operator,
        supports_start_transaction_modifier,
        supports_window_function_null_treatment_arg,
        supports_dictionary_syntax,
        supports_window_clause_named_window_reference,
        supports_parenthesized_set_variables,
        supports_select_wildcard_except,
        support_map_literal_syntax,
        allow_extract_custom,
        allow_extract_single_quotes,
        supports_extract_comma_syntax,
        supports_create_view_comment_syntax,
        supports_parens_around_table_factor,
        supports_values_as_table_factor,
        supports_create_index_with_clause,
        supports_explain_with_utility_options,
        supports_limit_comma,
        supports_update_order_by,
        supports_from_first_select,
        supports_projection_trailing_commas,
        supports_asc_desc_in_column_definition,
        supports_try_convert,
        supports_bitwise_shift_operators,
        supports_comment_on,
        supports_load_extension,
        supports_named_fn_args_with_assignment_operator,
        supports_struct_literal,
        supports_empty_projections,
        supports_nested_comments,
        supports_multiline_comment_hints,
        supports_user_host_grantee,
        supports_string_escape_constant,
        supports_array_typedef_with_brackets,
        supports_match_against,
        supports_set_names,
        supports_comma_separated_set_assignments,
        supports_filter_during_aggregation,
        supports_select_wildcard_exclude,
        supports_data_type_signed_suffix,
        supports_interval_options,
        supports_quote_delimited_string,
        supports_select_wildcard_replace,
        supports_select_wildcard_ilike,
        supports_select_wildcard_rename,
        supports_optimize_table,
        supports_install,
        supports_detach,
        supports_prewhere,
        supports_with_fill,
        supports_limit_by,
        supports_interpolate,
        supports_settings,
        supports_select_format,
        supports_comment_optimizer_hint,
        supports_constraint_keyword_without_name,
        supports_key_column_option,
        supports_comma_separated_trim,
        supports_cte_without_as,
        supports_select_item_multi_column_alias,
        supports_xml_expressions,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapper_answers_as_the_generic_dialect() {
        let (wrapped, generic) = (StreamDialect::new(false), GenericDialect {});
        let answers = |dialect: &dyn Dialect| {
            (
                (
                    dialect.is_delimited_identifier_start('`'),
                    dialect.is_identifier_start('#'),
                ),
                (dialect.is_identifier_part('$'), dialect.supports_nested_comments()),
                (dialect.supports_match_recognize(), dialect.supports_table_versioning()),
                (dialect.supports_struct_literal(), dialect.support_map_literal_syntax()),
                (
                    dialect.supports_filter_during_aggregation(),
                    dialect.supports_limit_comma(),
                ),
                dialect.dialect(),
            )
        };
        assert_eq!(answers(&wrapped), answers(&generic));
        assert!(StreamDialect::new(true).supports_table_versioning());
    }
}
