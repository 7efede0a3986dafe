-- Agents, contacts and groups as audiences (docs/protocol.md §3), and chatws.set_groups.
-- Programs that know migration 4 or a later one can work with it.
--
-- A node of an earlier version delivers to agents only: it reads `*` as all its connections, which are agents, and has
-- no subscribers for the channels of contacts and groups.

ALTER TABLE chatws.audiences DROP CONSTRAINT audiences_kind_check;
ALTER TABLE chatws.audiences ADD CONSTRAINT audiences_kind_check
    CHECK (kind IN ('conversation', 'user', 'agents', 'everyone', 'none'));
UPDATE chatws.audiences SET kind = 'agents'
    WHERE kind = 'everyone' AND event IN ('conversation_updated', 'new_conversation', 'agent_status');

CREATE OR REPLACE FUNCTION chatws.set_audiences(p_kinds json) RETURNS void LANGUAGE sql VOLATILE AS $$
    DELETE FROM chatws.audiences;
    INSERT INTO chatws.audiences (event, kind, transient, not_to_actor) VALUES
        ('new_message', 'conversation', false, false),
        ('message_read', 'conversation', false, false),
        ('message_status_updated', 'conversation', false, false),
        ('typing', 'conversation', true, true),
        ('conversation_updated', 'agents', false, false),
        ('new_conversation', 'agents', false, false),
        ('agent_status', 'agents', true, false);
    INSERT INTO chatws.audiences AS a (event, kind) SELECT k.key, k.value FROM json_each_text(p_kinds) k
        ON CONFLICT (event) DO UPDATE SET kind = EXCLUDED.kind;
$$;

-- The names of groups, each once.
CREATE FUNCTION chatws._groups(p_groups jsonb, p_field text) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF coalesce(jsonb_typeof(p_groups), 'null') <> 'array' OR jsonb_array_length(p_groups) > 100 THEN
        PERFORM chatws._refuse(p_field || ' must be an array of at most 100 names');
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements(p_groups) one
               WHERE jsonb_typeof(one) <> 'string' OR one #>> '{}' !~ '^[A-Za-z0-9_.:-]{1,64}$') THEN
        PERFORM chatws._refuse(p_field || ' must have names of 1 to 64 characters of A-Z a-z 0-9 _ . : -');
    END IF;
    RETURN ARRAY(SELECT DISTINCT one #>> '{}' FROM jsonb_array_elements(p_groups) one);
END
$$;

CREATE FUNCTION chatws._ids(p_ids jsonb, p_field text) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF jsonb_typeof(p_ids) <> 'array' OR jsonb_array_length(p_ids) NOT BETWEEN 1 AND 10000 THEN
        PERFORM chatws._refuse(p_field || ' must be an array of 1 to 10000 ids');
    END IF;
    RETURN ARRAY(SELECT DISTINCT chatws._id(one, p_field) FROM jsonb_array_elements(p_ids) one);
END
$$;

CREATE OR REPLACE FUNCTION chatws._channels(p_to jsonb) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_channel text;
    v_groups text[];
BEGIN
    IF p_to = '"agents"' THEN
        RETURN ARRAY['*'];
    ELSIF p_to = '"everyone"' THEN
        RETURN ARRAY['*', '#contacts'];
    END IF;
    IF jsonb_typeof(p_to) <> 'object' THEN
        PERFORM chatws._refuse('audience must be "agents", "everyone" or an object that names one audience');
    END IF;
    p_to := jsonb_strip_nulls(p_to);
    IF (SELECT count(*) FROM jsonb_object_keys(p_to) k WHERE k IN
        ('conversation_id', 'user_id', 'user_ids', 'contact_id', 'contact_ids', 'group', 'groups')) <> 1 THEN
        PERFORM chatws._refuse('audience must name one of conversation_id, user_id, user_ids, contact_id, '
            || 'contact_ids, group, groups');
    END IF;
    IF p_to ? 'role' AND NOT (p_to ? 'conversation_id' AND p_to -> 'role' IN ('"agent"', '"contact"')) THEN
        PERFORM chatws._refuse('audience.role must be "agent" or "contact", and goes with conversation_id only');
    END IF;
    IF p_to ? 'conversation_id' THEN
        v_channel := chatws._id(p_to -> 'conversation_id', 'audience.conversation_id');
        RETURN CASE p_to ->> 'role'
            WHEN 'agent' THEN ARRAY['conversation:' || v_channel, '!#contacts']
            WHEN 'contact' THEN ARRAY['conversation-contacts:' || v_channel]
            ELSE ARRAY['conversation:' || v_channel]
        END;
    ELSIF p_to ? 'user_id' THEN
        RETURN ARRAY['user:' || chatws._id(p_to -> 'user_id', 'audience.user_id')];
    ELSIF p_to ? 'contact_id' THEN
        RETURN ARRAY['contact:' || chatws._id(p_to -> 'contact_id', 'audience.contact_id')];
    ELSIF p_to ? 'user_ids' THEN
        RETURN ARRAY(SELECT 'user:' || id FROM unnest(chatws._ids(p_to -> 'user_ids', 'audience.user_ids')) id);
    ELSIF p_to ? 'contact_ids' THEN
        RETURN ARRAY(SELECT 'contact:' || id FROM unnest(chatws._ids(p_to -> 'contact_ids', 'audience.contact_ids')) id);
    ELSIF p_to ? 'group' THEN
        v_groups := chatws._groups(jsonb_build_array(p_to -> 'group'), 'audience.group');
    ELSE
        v_groups := chatws._groups(p_to -> 'groups', 'audience.groups');
    END IF;
    IF cardinality(v_groups) = 0 THEN
        PERFORM chatws._refuse('audience.groups must not be empty');
    END IF;
    RETURN ARRAY(SELECT 'group:' || name FROM unnest(v_groups) name);
END
$$;

CREATE OR REPLACE FUNCTION chatws._publish(
    p_event text, p_data text, p_audience jsonb, p_except text, p_key text, p_transient boolean
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_rule chatws.audiences;
    v_data json;
    v_channels text[];
    v_actor jsonb;
BEGIN
    IF p_event IS NULL OR p_event !~ '^[A-Za-z0-9_.:-]{1,64}$' THEN
        PERFORM chatws._refuse('event must be 1 to 64 characters of A-Z a-z 0-9 _ . : -');
    END IF;
    IF p_event IN ('authenticated', 'subscribed', 'unsubscribed', 'presence', 'error', 'pong',
                   'contact_status', 'groups', 'available', 'connected', 'disconnected', 'reconnect_failed', 'resync',
                   'recovered', 'identity_changed', 'token_failed') THEN
        PERFORM chatws._refuse(p_event || ' is reserved for the server (reserved_event)');
    END IF;
    v_data := p_data;  -- raises an exception if it is not JSON
    IF v_data IS NULL OR json_typeof(v_data) <> 'object' THEN
        PERFORM chatws._refuse('data must be an object');
    END IF;
    IF octet_length(p_data) > 1048576 THEN
        PERFORM chatws._refuse('data is larger than 1 MiB');
    END IF;
    IF char_length(p_key) NOT BETWEEN 1 AND 128 THEN
        PERFORM chatws._refuse('id must have 1 to 128 characters');
    END IF;
    IF p_except IS NOT NULL THEN
        p_except := chatws._id(to_jsonb(p_except), 'except_user_id');
    END IF;
    SELECT * INTO v_rule FROM chatws.audiences a WHERE a.event = p_event;
    IF p_audience IS NOT NULL AND p_audience <> 'null' THEN
        v_channels := chatws._channels(p_audience);
    ELSIF v_rule.kind = 'agents' THEN
        v_channels := ARRAY['*'];
    ELSIF v_rule.kind = 'everyone' THEN
        v_channels := ARRAY['*', '#contacts'];
    ELSIF v_rule.kind IS NULL OR v_rule.kind = 'none' THEN
        PERFORM chatws._refuse(p_event || ' has no default audience: name one (no_audience)');
    ELSE
        v_actor := v_data -> 'user_id';
        IF v_rule.not_to_actor AND p_except IS NULL AND v_actor <> 'null' THEN
            p_except := chatws._id(v_actor, 'data.user_id');
        END IF;
        IF v_rule.kind = 'user' THEN
            v_channels := ARRAY['user:' || chatws._id(v_actor, 'data.user_id')];
        ELSE
            v_channels := ARRAY['conversation:' ||
                chatws._id((v_data -> 'conversation_id')::jsonb, 'data.conversation_id')];
            v_actor := v_data -> 'contact_id';
            IF v_rule.not_to_actor AND p_except IS NULL AND v_actor <> 'null' THEN
                v_channels := v_channels || ('!contact:' || chatws._id(v_actor, 'data.contact_id'));
            END IF;
        END IF;
    END IF;
    PERFORM chatws._put(p_event, v_channels, p_except, p_data, p_key,
        coalesce(p_transient, false) OR coalesce(v_rule.transient, false));
END
$$;


CREATE FUNCTION chatws._set_groups(p_user jsonb, p_groups text[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_user text := chatws._id(p_user, 'user_id');
    v_groups text[] := chatws._groups(to_jsonb(p_groups), 'groups');
BEGIN
    PERFORM chatws._put('groups', ARRAY['#nodes'], NULL,
        '{"user_id":' || chatws._id_as_json(v_user) || ',"groups":' || array_to_json(v_groups)::text || '}', NULL, false);
END
$$;
CREATE FUNCTION chatws.set_groups(user_id bigint, groups text[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._set_groups(to_jsonb($1), $2)
$$;
CREATE FUNCTION chatws.set_groups(user_id text, groups text[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT chatws._set_groups(to_jsonb($1), $2)
$$;
COMMENT ON FUNCTION chatws.set_groups(bigint, text[]) IS
    'When this transaction commits, replace the groups of that agent''s open connections.';

-- Grants to roles stay. A role that has been allowed before needs `chatws.allow` once more for set_groups.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA chatws FROM PUBLIC;
CREATE OR REPLACE FUNCTION chatws.allow(p_role name) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_function regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA chatws TO %I', p_role);
    EXECUTE format('GRANT SELECT ON chatws.online_agents TO %I', p_role);
    FOR v_function IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'chatws'::regnamespace
            AND p.proname IN ('publish', 'revoke', 'disconnect', 'set_groups')
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', v_function, p_role);
    END LOOP;
END
$$;
COMMENT ON FUNCTION chatws.allow(name) IS
    'Let a role publish, revoke, disconnect, set groups, and see which agents are online.';
